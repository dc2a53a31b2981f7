"""Reading a stream as one of a consumer group: at least once, and handed over effectively once.

An entry that was read is *held*: a heartbeat keeps it fresh until it is settled. Whoever stops beating loses its
entries to a sweep, so idle means dead. Settling is one script (settle.lua) that does nothing unless the entry is
still pending, so two consumers that both believe they own it hand over one result.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError, ResponseError

from routershift.v1 import trajectory_pb2 as pb
from shared.errors import CorruptDataError
from shared.settings import StreamSettings
from shared.streams.keys import READERS, Keys, Stream
from shared.streams.scripts import source

log = logging.getLogger(__name__)

MessageT = TypeVar("MessageT", bound=Message)


@dataclass(frozen=True, slots=True)
class Entry:
    """One message as delivered. Group and count stand outside the payload, so that a payload which cannot be
    decoded can still be accounted for."""

    id: str
    group: str  # name of the trajectory group
    trajectories: int
    payload: bytes
    deliveries: int


@dataclass(frozen=True, slots=True)
class End:
    """How a group's life ends: the ledger's field."""

    field: str

    @classmethod
    def trained(cls) -> "End":
        return cls("trained")

    @classmethod
    def dropped(cls, reason: str) -> "End":
        return cls(f"dropped:{reason}")

    @classmethod
    def dead(cls, reason: str) -> "End":
        return cls(f"dead:{reason}")


class Consumer:
    """A member of the consumer group that reads one stream."""

    def __init__(self, redis: Redis, keys: Keys, stream: Stream, settings: StreamSettings) -> None:
        self._redis = redis
        self._keys = keys
        self._stream = stream
        self._settings = settings
        self._group = READERS[stream]
        self._name = settings.consumer or socket.gethostname()
        self._settle = redis.register_script(source("settle.lua"))
        self._hold = redis.register_script(source("hold.lua"))
        self._held: set[str] = set()
        self._own_cursor: str | None = "0"  # None: everything left by an earlier life was read
        self._claim_cursor = "0-0"
        self._next_sweep = 0.0

    @property
    def held(self) -> int:
        """Entries read and not yet settled."""
        return len(self._held)

    async def open(self) -> None:
        """Creates stream and group if need be, at id 0: entries that came before are not skipped."""
        try:
            await self._redis.xgroup_create(self._keys(self._stream), self._group, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def read(self, count: int) -> list[Entry]:
        """Up to `count` entries: its own from an earlier life, then those of the dead, then new ones.

        Waits at most `block_seconds` for new ones. An entry delivered too often goes to the dead letters here.
        """
        try:
            entries = await self._read_own(count) or await self._sweep(count) or await self._read_new(count)
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            log.warning("consumer group %s of %s is gone; creating it again", self._group, self._stream)
            await self.open()
            return []
        kept = []
        for entry in entries:
            self._held.add(entry.id)
            if entry.deliveries > self._settings.max_deliveries:
                await self.bury(entry, "max_deliveries", f"delivered {entry.deliveries} times without being settled")
            else:
                kept.append(entry)
        return kept

    async def each(
        self, handle: Callable[[Entry], Coroutine[None, None, None]], at_once: int, stop: asyncio.Event
    ) -> None:
        """Gives entries to `handle`, up to `at_once` at the same time, until `stop`; then finishes those it holds."""
        async with asyncio.TaskGroup() as group:
            tasks: set[asyncio.Task[None]] = set()
            while not stop.is_set():
                if len(tasks) >= at_once:
                    await asyncio.wait(tasks, timeout=self._settings.block_seconds, return_when=asyncio.FIRST_COMPLETED)
                    continue
                for entry in await self.read(at_once - len(tasks)):
                    task = group.create_task(handle(entry))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)

    async def hand_over(self, entry: Entry, destination: Stream, message: Message) -> bool:
        """Replaces the entry by `message` on the next stream, in one transaction.

        Waits while the destination, or Redis itself, is full. False: another consumer had settled the entry.
        """
        payload = message.SerializeToString()
        waited = False
        while True:
            try:
                answer = await self._run(entry, destination, self._settings.max_bytes, payload, "")
            except OutOfMemoryError:
                answer = "full"
            if answer != "full":
                return answer == "ok"
            if not waited:
                log.warning("stream %s is full; waiting for its reader", destination)
                waited = True
            await asyncio.sleep(self._settings.block_seconds)

    async def end(self, entry: Entry, end: End) -> bool:
        """Removes the entry and closes its group's account. False: another consumer had settled it."""
        return await self._run(entry, None, 0, b"", end.field) == "ok"

    async def bury(self, entry: Entry, reason: str, detail: str) -> bool:
        """Moves the entry to the dead letters, with its reason, in one transaction."""
        letter = pb.DeadLetter(
            stream=self._stream,
            entry_id=entry.id,
            reason=reason,
            detail=detail,
            payload=entry.payload,
            consumer=self._name,
        )
        letter.created_at.GetCurrentTime()
        log.error("dead letter from %s: %s: %s", self._stream, reason, detail, extra={"group": entry.group})
        return await self._run(entry, "dead", 0, letter.SerializeToString(), End.dead(reason).field) == "ok"

    async def beat(self) -> None:
        """Heartbeat for everything held; run it as a task beside the work."""
        while True:
            await asyncio.sleep(self._settings.idle_seconds / 3)
            if ids := sorted(self._held):
                await self._hold(keys=[self._keys(self._stream)], args=[self._group, self._name, *ids])

    async def _run(self, entry: Entry, destination: str | None, limit: int, payload: bytes, field: str) -> str:
        k = self._keys
        keys = [k(self._stream), k(destination or self._stream), k.tickets, k.in_flight, k.ledger, k.bytes]
        args: Sequence[str | int | bytes] = [
            self._group, entry.id, len(entry.payload), self._stream, destination or "",
            limit, payload, field, entry.group, entry.trajectories,
        ]  # fmt: skip
        answer = (await self._settle(keys=keys, args=args)).decode()
        if answer != "full":
            self._held.discard(entry.id)
        return str(answer)

    async def _read_own(self, count: int) -> list[Entry]:
        if self._own_cursor is None:
            return []
        key = self._keys(self._stream)
        answer: Any = await self._redis.xreadgroup(self._group, self._name, {key: self._own_cursor}, count=count)
        raw = answer[0][1] if answer else []
        self._own_cursor = raw[-1][0].decode() if raw else None
        return await self._entries(raw)

    async def _sweep(self, count: int) -> list[Entry]:
        now = asyncio.get_running_loop().time()
        if now < self._next_sweep:
            return []
        answer: Any = await self._redis.xautoclaim(
            self._keys(self._stream), self._group, self._name,
            min_idle_time=int(self._settings.idle_seconds * 1000), start_id=self._claim_cursor, count=count,
        )  # fmt: skip
        self._claim_cursor = answer[0].decode()
        if self._claim_cursor == "0-0":
            self._next_sweep = now + self._settings.idle_seconds / 2
        return await self._entries(answer[1])

    async def _read_new(self, count: int) -> list[Entry]:
        answer: Any = await self._redis.xreadgroup(
            self._group, self._name, {self._keys(self._stream): ">"},
            count=count, block=int(self._settings.block_seconds * 1000),
        )  # fmt: skip
        return [_entry(id_, fields, 1) for id_, fields in (answer[0][1] if answer else [])]

    async def _entries(self, raw: list[tuple[bytes, dict[bytes, bytes] | None]]) -> list[Entry]:
        """Redelivered entries with their delivery counts; those deleted in the meantime have no fields."""
        entries = []
        for id_, fields in raw:
            if fields and id_.decode() not in self._held:
                pending: Any = await self._redis.xpending_range(self._keys(self._stream), self._group, id_, id_, 1)
                entries.append(_entry(id_, fields, pending[0]["times_delivered"] if pending else 1))
        return entries


def _entry(id_: bytes, fields: dict[bytes, bytes], deliveries: int) -> Entry:
    return Entry(id_.decode(), fields[b"g"].decode(), int(fields[b"n"]), fields[b"p"], deliveries)


def parse(kind: type[MessageT], entry: Entry) -> MessageT:
    """The entry's payload as a message. Raises CorruptDataError where it is none."""
    try:
        return kind.FromString(entry.payload)
    except DecodeError as error:
        raise CorruptDataError(
            f"payload of {len(entry.payload)} bytes is no {kind.DESCRIPTOR.full_name}: {error}"
        ) from None
