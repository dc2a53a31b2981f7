"""Scores on the wire."""

from routershift import wire
from routershift.v1 import reward_pb2 as rew
from routershift.v1 import trajectory_pb2 as pb
from services.reward.outcomes import Outcome, Scored
from services.reward.verifiers.base import Item

_OUTCOMES = {
    Outcome.SCORED: pb.OUTCOME_SCORED,
    Outcome.FAILED: pb.OUTCOME_FAILED,
    Outcome.TIMED_OUT: pb.OUTCOME_TIMED_OUT,
    Outcome.REFUSED: pb.OUTCOME_REFUSED,
}


def decode_item(item: rew.ScoreItem) -> Item:
    """Raises InvalidInputError for a reference with a number that is not finite."""
    special_tokens = wire.decode_special_tokens(item.special_tokens)
    messages = [(message.role, message.content) for message in item.messages]
    return Item(item.prompt, item.response, wire.decode_struct(item.reference), special_tokens, messages)


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
