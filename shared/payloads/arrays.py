"""A group of trajectories without its arrays, and the arrays for themselves.

The arrays of a trajectory are a serialized `Trajectory` that has nothing else, so that protobuf's own merge puts them
back. Nothing else is taken from it: what a store holds cannot change a reward or a text.
"""

import zlib
from collections.abc import Callable, Sequence

from google.protobuf.message import DecodeError, Message

from routershift.v1 import trajectory_pb2 as pb
from shared.errors import CorruptDataError
from shared.protobuf import fields

_OF_COMPLETION = ("token_ids", "logprobs", "router_trace", "top_logprobs")
_COMPLETION = pb.Trajectory.COMPLETION_FIELD_NUMBER
_GIVEN_NUMBER = pb.Trajectory.GIVEN_TOKEN_IDS_FIELD_NUMBER
_COMPLETION_NUMBERS = {pb.Completion.DESCRIPTOR.fields_by_name[name].number for name in _OF_COMPLETION}


def detach(group: pb.TrajectoryGroup, key: str) -> tuple[pb.TrajectoryGroup, list[bytes]]:
    """The group with references in place of arrays, and the arrays of each trajectory, which make up the object.

    Args:
        group: stays as it is.
        key: of the object.
    """
    envelope, parts, offset = pb.TrajectoryGroup(prompt=group.prompt), list[bytes](), 0
    for name in _present(group, ("generated_at", "scored_at")):
        getattr(envelope, name).CopyFrom(getattr(group, name))
    for trajectory in group.trajectories:
        part, kept = _split(trajectory)
        reference = pb.PayloadReference(key=key, offset=offset, size_bytes=len(part), crc32=zlib.crc32(part))
        kept.payload.CopyFrom(reference)
        envelope.trajectories.append(kept)
        parts.append(part)
        offset += len(part)
    return envelope, parts


def attach(trajectory: pb.Trajectory, part: bytes) -> None:
    """Puts the arrays back, in place; the reference goes.

    Args:
        part: the bytes that the reference names.

    Raises:
        CorruptDataError: they are others, or the trajectory has arrays of its own.
    """
    reference = trajectory.payload
    where = f"payload {reference.key} from byte {reference.offset} on"
    if len(part) != reference.size_bytes:
        raise CorruptDataError(f"{where} has {len(part)} bytes; expected {reference.size_bytes}")
    if (found := zlib.crc32(part)) != reference.crc32:
        raise CorruptDataError(f"{where} has CRC-32 {found:#010x}; expected {reference.crc32:#010x}")
    if both := [*_present(trajectory.completion, _OF_COMPLETION), *_present(trajectory, ("given_token_ids",))]:
        raise CorruptDataError(f"trajectory has {', '.join(both)} and a payload; expected one of them")
    try:
        _check_arrays(part)
        trajectory.MergeFromString(part)
    except (DecodeError, CorruptDataError) as error:
        raise CorruptDataError(f"{where} is no {pb.Trajectory.DESCRIPTOR.full_name} of arrays: {error}") from None
    trajectory.ClearField("payload")


def attach_all(group: pb.TrajectoryGroup, read: Callable[[pb.PayloadReference], bytes]) -> None:
    """`attach` for every trajectory that has a reference."""
    for trajectory in group.trajectories:
        if trajectory.HasField("payload"):
            attach(trajectory, read(trajectory.payload))


def _check_arrays(part: bytes) -> None:
    """Raises CorruptDataError where it has anything else. Nothing is copied for it."""
    for field in fields(memoryview(part)):
        if field.number == _COMPLETION and field.value is not None:
            wrong = {inner.number for inner in fields(field.value)} - _COMPLETION_NUMBERS
        else:
            wrong = {field.number} - {_GIVEN_NUMBER}
        if wrong:
            raise CorruptDataError(f"it has the fields {sorted(wrong)} beside arrays")


def _split(trajectory: pb.Trajectory) -> tuple[bytes, pb.Trajectory]:
    """The arrays, serialized, and a trajectory without them."""
    arrays = pb.Trajectory()
    for name in _present(trajectory.completion, _OF_COMPLETION):
        getattr(arrays.completion, name).CopyFrom(getattr(trajectory.completion, name))
    if trajectory.HasField("given_token_ids"):
        arrays.given_token_ids.CopyFrom(trajectory.given_token_ids)
    kept = pb.Trajectory()
    kept.CopyFrom(trajectory)
    for name in _OF_COMPLETION:
        _clear(kept.completion, name)
    kept.ClearField("given_token_ids")
    return arrays.SerializeToString(), kept


def _clear(message: Message, name: str) -> None:
    message.ClearField(name)


def _present(message: Message, names: Sequence[str]) -> list[str]:
    return [name for name in names if message.HasField(name)]
