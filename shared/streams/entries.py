"""What a stream holds, and how a group ends."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from routershift import wire
from routershift.v1 import trajectory_pb2 as pb
from shared.errors import CorruptDataError
from shared.streams.payloads import Blob
from shared.tracing.context import sampled

MessageT = TypeVar("MessageT", bound=Message)


@dataclass(frozen=True, slots=True)
class EntryRef:
    """An entry without its payload: all that is needed to settle it."""

    id: str
    group: str  # name of the trajectory group
    trajectories: int
    size: int  # bytes that it is accounted for
    blob: Blob | None  # where the payload lies, if not in the entry itself
    traceparent: str = ""  # of the group's trace; '' where it is not recorded
    reference: str = ""  # key of the group's arrays in the payload store; '' where the payload has them

    @classmethod
    def of(cls, id_: bytes, fields: Mapping[bytes, bytes]) -> "EntryRef":
        """From its fields in Redis."""
        blob = Blob.of(fields)
        size = blob.size + blob.tail if blob else len(fields.get(b"p", b""))
        return cls(
            id_.decode(),
            fields[b"g"].decode(),
            int(fields[b"n"]),
            size,
            blob,
            sampled(fields.get(b"t", b"")),
            fields.get(b"k", b"").decode(),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One message as delivered. Group, count and trace stand outside the payload, so that a payload which cannot be
    decoded can still be accounted for."""

    id: str
    group: str  # name of the trajectory group
    trajectories: int
    payload: bytes
    deliveries: int
    blob: Blob | None = None  # where the payload lies, if not in the entry itself
    traceparent: str = ""  # of the group's trace; '' where it is not recorded
    reference: str = ""  # key of the group's arrays in the payload store; '' where the payload has them

    @classmethod
    def of(cls, id_: bytes, fields: Mapping[bytes, bytes], deliveries: int) -> "Entry":
        """From its fields in Redis. What lies in a blob is left there: the payload is what stands behind it."""
        ref = EntryRef.of(id_, fields)
        payload = fields.get(b"p", b"")
        return cls(ref.id, ref.group, ref.trajectories, payload, deliveries, ref.blob, ref.traceparent, ref.reference)

    @property
    def size(self) -> int:
        """Bytes that it is accounted for."""
        return self.blob.size + self.blob.tail if self.blob else len(self.payload)

    @property
    def ref(self) -> EntryRef:
        """The entry without its payload, for who keeps it until later."""
        return EntryRef(self.id, self.group, self.trajectories, self.size, self.blob, self.traceparent, self.reference)


@dataclass(frozen=True, slots=True)
class End:
    """How a group ends: the ledger's field, and for one that was trained on the step that did it."""

    field: str
    step: int | None = None

    @classmethod
    def trained(cls, step: int) -> "End":
        """Args: step: the optimizer step, from 1, whose batch held the group."""
        return cls("trained", step)

    @classmethod
    def dropped(cls, reason: str) -> "End":
        return cls(f"dropped:{reason}")

    @classmethod
    def dead(cls, reason: str) -> "End":
        return cls(f"dead:{reason}")


def parse_group(entry: Entry) -> pb.TrajectoryGroup:
    """The entry's payload as a group, as `wire.parse_group` reads it. Raises CorruptDataError where it is none."""
    return wire.parse_group(entry.payload)


def parse(kind: type[MessageT], entry: Entry) -> MessageT:
    """The entry's payload as a message. Raises CorruptDataError where it is none."""
    try:
        return kind.FromString(entry.payload)
    except DecodeError as error:
        raise CorruptDataError(
            f"payload of {len(entry.payload)} bytes is no {kind.DESCRIPTOR.full_name}: {error}"
        ) from None
