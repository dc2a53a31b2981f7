"""Scores on the wire."""

from google.protobuf import struct_pb2

from routershift.v1 import trajectory_pb2 as pb
from services.reward.outcomes import Outcome, Scored
from services.reward.verifiers.base import Item
from shared import wire

_OUTCOMES = {
    Outcome.SCORED: pb.OUTCOME_SCORED,
    Outcome.FAILED: pb.OUTCOME_FAILED,
    Outcome.TIMED_OUT: pb.OUTCOME_TIMED_OUT,
    Outcome.REFUSED: pb.OUTCOME_REFUSED,
}


def decode_item(prompt: str, response: str, reference: struct_pb2.Struct) -> Item:
    return Item(prompt, response, wire.decode_struct(reference))


def encode_score(scored: Scored) -> pb.Score:
    message = pb.Score(
        outcome=_OUTCOMES[scored.outcome],
        verifier=scored.verifier,
        verifier_version=scored.version,
        seconds=scored.seconds,
        error=scored.error,
    )
    if scored.verdict is not None:
        message.reward = scored.verdict.reward
        message.parts.update(scored.verdict.parts)
    return message
