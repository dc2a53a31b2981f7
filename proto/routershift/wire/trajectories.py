"""Trajectories on the wire: what the model sampled after a prompt, and what it was given in between."""

from collections.abc import Iterable, Sequence

from google.protobuf.message import DecodeError

from routershift.errors import CorruptDataError
from routershift.trajectory import Role, Segment, Trajectory, check_segments
from routershift.v1 import trajectory_pb2 as pb
from routershift.wire.completions import decode_completion, encode_completion
from routershift.wire.tensors import decode_tensor, encode_tensor

ROLES = {
    pb.ROLE_ASSISTANT: Role.ASSISTANT,
    pb.ROLE_USER: Role.USER,
    pb.ROLE_TOOL: Role.TOOL,
    pb.ROLE_SYSTEM: Role.SYSTEM,
}

ROLE_CODES = {role: code for code, role in ROLES.items()}


def encode_trajectory(name: pb.TrajectoryId, trajectory: Trajectory) -> pb.Trajectory:
    """Without a score. Where the model sampled everything, segments cost nothing."""
    last = max((i for i, segment in enumerate(trajectory.segments) if segment.is_sampled), default=None)
    return pb.Trajectory(
        id=name,
        completion=encode_completion(trajectory.completion),
        segments=[
            pb.Segment(
                role=ROLE_CODES[segment.role],
                tokens=segment.tokens,
                sampled=segment.is_sampled,
                text="" if i == last else segment.text,
                reward=segment.reward,
            )
            for i, segment in enumerate(trajectory.segments)
        ],
        given_token_ids=encode_tensor(trajectory.given_ids) if trajectory.given_ids.size else None,
    )


def decode_trajectory(message: pb.Trajectory) -> Trajectory:
    """What followed the prompt, without id and score.

    Raises:
        CorruptDataError: its segments do not cover its tokens, see `check_segments`; or of `decode_completion`.
    """
    completion = decode_completion(message.completion)
    segments = decode_segments(message.segments, completion.text)
    if not message.HasField("given_token_ids"):
        check_segments(segments, completion.token_ids.size, given=0)
        return Trajectory(completion, segments)
    given = decode_tensor(message.given_token_ids, "trajectory.given_token_ids", "int32", 1)
    check_segments(segments, completion.token_ids.size, given.size)
    return Trajectory(completion, segments, given)


def decode_segments(messages: Sequence[pb.Segment], last_text: str) -> tuple[Segment, ...]:
    """The segments of a trajectory, with their texts.

    Args:
        last_text: `Completion.text`, of the last sampled segment.

    Raises:
        CorruptDataError: an unknown role, or a text in two places.
    """
    segments = []
    last = max((i for i, message in enumerate(messages) if message.sampled), default=None)
    for i, message in enumerate(messages):
        if (role := ROLES.get(message.role)) is None:
            raise CorruptDataError(f"trajectory.segments[{i}].role is {message.role}; expected one of {list(Role)}")
        if i == last and message.text:
            raise CorruptDataError(
                f"trajectory.segments[{i}].text has {len(message.text)} characters; expected none, since "
                "completion.text is that of the last sampled segment"
            )
        text = last_text if i == last else message.text
        reward = message.reward if message.HasField("reward") else None
        segments.append(Segment(role, message.tokens, message.sampled, text, reward))
    return tuple(segments)


def encode_scores(scores: Iterable[pb.Score]) -> bytes:
    """What makes of a serialized group, put behind it, the same group scored now: nothing of it is read for that.

    Args:
        scores: of all its trajectories, in their order.
    """
    tail = pb.TrajectoryGroup(scores=scores)
    tail.scored_at.GetCurrentTime()
    encoded: bytes = tail.SerializeToString()
    return encoded


def parse_group(payload: bytes) -> pb.TrajectoryGroup:
    """A serialized group, with every score in its trajectory, wherever it stands in the payload.

    Raises:
        CorruptDataError: the payload is no group, or has scores of more or fewer trajectories.
    """
    try:
        group = pb.TrajectoryGroup.FromString(payload)
    except DecodeError as error:
        raise CorruptDataError(
            f"payload of {len(payload)} bytes is no {pb.TrajectoryGroup.DESCRIPTOR.full_name}: {error}"
        ) from None
    if not group.scores:
        return group
    if (found := len(group.scores)) != (expected := len(group.trajectories)):
        raise CorruptDataError(f"group.scores has {found} entries; expected {expected}, one for each trajectory")
    for trajectory, score in zip(group.trajectories, group.scores, strict=True):
        trajectory.score.CopyFrom(score)
    group.ClearField("scores")
    return group


def oldest_version(trajectories: Iterable[pb.Trajectory]) -> int | None:
    """The oldest policy version that sampled any token of these trajectories; None where there is no token."""
    return min((s.version for t in trajectories for s in t.completion.versions), default=None)


def newest_version(trajectories: Iterable[pb.Trajectory]) -> int | None:
    """The newest of them; None where there is no token."""
    return max((s.version for t in trajectories for s in t.completion.versions), default=None)
