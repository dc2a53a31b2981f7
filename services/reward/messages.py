"""Scores on the wire."""

from routershift import wire
from routershift.v1 import reward_pb2 as rew
from routershift.v1 import trajectory_pb2 as pb
from services.reward.outcomes import Outcome, Scored
from services.reward.verifiers.base import Item
from shared.errors import CorruptDataError

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


def decode_items(group: pb.TrajectoryGroup) -> list[Item]:
    """What there is to judge in a group that no verifier has seen: an item for each trajectory.

    Raises:
        CorruptDataError: an unknown role in an episode; or the group was judged before.
        InvalidInputError: a reference with a number that is not finite.
    """
    if group.HasField("scored_at"):
        raise CorruptDataError("group.scored_at is set; expected a group that was not judged before")
    reference = wire.decode_struct(group.prompt.reference)
    items = []
    for trajectory in group.trajectories:
        completion = trajectory.completion
        segments = wire.decode_segments(trajectory.segments, completion.text)
        items.append(
            Item(
                group.prompt.text,
                completion.text,
                reference,
                wire.decode_special_tokens(completion.special_tokens),
                [(segment.role.value, segment.text) for segment in segments],
            )
        )
    return items


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
