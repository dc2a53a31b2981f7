"""Reading a stream as one of a consumer group: at least once, and handed over effectively once.

An entry that was read is *held*: a heartbeat keeps it fresh until it is settled. Whoever stops beating loses its
entries to a sweep, so idle means dead. Settling is one script (settle.lua) that removes the entry and does nothing
where it is gone, so two consumers that both believe they own it hand over one result. It remembers its token for a
while: asked again because its answer was lost, it answers what it answered before.
"""

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from google.protobuf.message import Message
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from shared.errors import CorruptDataError
from shared.payloads.bulk import Bulk
from shared.settings import StreamSettings
from shared.streams import metrics
from shared.streams.connection import losses
from shared.streams.entries import End, Entry, EntryRef, parse, parse_group
from shared.streams.keys import READERS, Keys, Stream
from shared.streams.payloads import Payloads
from shared.streams.scripts import Fence, Script
from shared.streams.settling import Settling
from shared.tracing import spans
from shared.tracing.kinds import WAIT, Waiting

__all__ = ["Consumer", "End", "Entry", "EntryRef", "parse", "parse_group"]

log = logging.getLogger(__name__)

_ROOM_SECONDS = 0.05
_MOST_PENDING = 10_000  # of one consumer; more are left to the sweep
_GONE_IDLES = 10  # times `idle_seconds` of silence after which a consumer with nothing pending is removed


class Consumer:
    """A member of the consumer group that reads one stream.

    A Redis that is away, failing over or full is waited for in every method (see `connection.Client`).
    """

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        stream: Stream,
        settings: StreamSettings,
        fence: Callable[[], Fence] | None = None,
        bulk: Bulk | None = None,
    ) -> None:
        """
        Args:
            fence: what this process holds, where it reads for a role of the run.
            bulk: where the arrays of groups that are handed over go; None: into their entries.
        """
        self._redis = redis
        self._keys = keys
        self._stream = stream
        self._settings = settings
        self._group = READERS[stream]
        self.name = settings.consumer or socket.gethostname()
        self._settling = Settling(redis, keys, stream, settings, self.name, fence, bulk)
        self._hold = Script(redis, "hold")
        self._retire = Script(redis, "retire")
        self._payloads = Payloads(redis, keys, settings)
        self._held: set[str] = set()
        self._own_cursor: str | None = "0"  # None: everything left by an earlier process was read
        self._losses = losses(redis)
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

    async def read(self, count: int, spared: Callable[[str], bool] = lambda group: False) -> list[Entry]:
        """Up to `count` entries: its own from an earlier process, then those of the dead, then new ones.

        Waits at most `block_seconds` for new ones. An entry delivered too often goes to the dead letters here, and so
        does one whose payload is lost.

        Args:
            spared: groups that are given out however often they were delivered. They only wait to be settled, so a
                payload that lies beside the stream is not read.
        """
        try:
            entries = (
                await self._read_own(count)
                or await self._read_lost(count)
                or await self._sweep(count)
                or await self._read_new(count)
            )
        except ResponseError as error:
            if not str(error).startswith("NOGROUP"):
                raise
            await self._reopen()
            return []
        self._held.update(entry.id for entry in entries)
        payloads = await self._payloads.get_all([e.blob for e in entries if e.blob and not spared(e.group)])
        kept, beside = [], iter(payloads)
        for found in entries:
            entry, is_spared = found, spared(found.group)
            if found.blob and not is_spared:
                if isinstance(payload := next(beside), CorruptDataError):
                    await self.bury(found, "payload_lost", str(payload))
                    continue
                entry = replace(found, payload=payload + found.payload)
            if entry.deliveries > self._settings.max_deliveries and not is_spared:
                await self.bury(entry, "max_deliveries", f"delivered {entry.deliveries} times without being settled")
            else:
                kept.append(entry)
                if entry.traceparent and not is_spared:
                    self._record_wait(entry)
        return kept

    async def vouch(self, *entries: Entry | EntryRef) -> None:
        """Forgets how often these entries were delivered: they are good, so what ends a process later is not their
        fault. Without it a process that is ended again and again, as for load, would make dead letters of them.
        """
        if entries:
            await self._beat("0", [entry.id for entry in entries])

    async def each(
        self, handle: Callable[[Entry], Coroutine[None, None, None]], room: Callable[[], int], stop: asyncio.Event
    ) -> None:
        """Gives entries to `handle`, each in a task, until `stop`; then finishes those it holds.

        Args:
            room: how many more entries may be begun now, beside the `held` ones. It is asked before every read, and
                while it answers 0 or less whenever an entry is done, and every 50 ms.
        """
        async with asyncio.TaskGroup() as group:
            tasks: set[asyncio.Task[None]] = set()
            while not stop.is_set():
                if (count := room()) <= 0:
                    await _first_of(tasks)
                    continue
                for entry in await self.read(count):
                    task = group.create_task(handle(entry))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)

    async def hand_over(self, entry: Entry | EntryRef, destination: Stream, message: Message) -> bool:
        """Replaces the entry by `message` on the next stream, in one transaction.

        Waits while the destination, or Redis itself, is full. False: another consumer had settled the entry.
        """
        done = await self._settling.hand_over(entry, destination, message)
        self._held.discard(entry.id)
        return done

    async def pass_on(self, entry: Entry, destination: Stream, tail: bytes) -> bool:
        """As `hand_over`, of the entry's own payload with `tail` behind it; what lies beside its stream stays there."""
        done = await self._settling.pass_on(entry, destination, tail)
        self._held.discard(entry.id)
        return done

    async def end(self, entry: Entry | EntryRef, end: End) -> bool:
        """Removes the entry and closes its group's account. False: another consumer had settled it."""
        done = await self._settling.end(entry, end)
        self._held.discard(entry.id)
        return done

    async def bury(self, entry: Entry, reason: str, detail: str) -> bool:
        """Moves the entry to the dead letters, with its reason, in one transaction. False: it had been settled."""
        done = await self._settling.bury(entry, reason, detail)
        self._held.discard(entry.id)
        return done

    async def beat(self) -> None:
        """Heartbeat for everything held; run it as a task beside the work."""
        while True:
            await asyncio.sleep(self._settings.idle_seconds / 3)
            if ids := sorted(self._held):
                await self._beat("", ids)

    async def _beat(self, deliveries: str, ids: list[str]) -> None:
        args = [self._group, self.name, deliveries, *ids]
        if await self._hold(keys=[self._keys(self._stream)], args=args) < 0:
            await self._reopen()

    def _record_wait(self, entry: Entry) -> None:
        """From the time in its id, which Redis gave it, to its delivery; a redelivered entry has waited since then."""
        waited = Waiting(stream=self._stream, group=entry.group, deliveries=entry.deliveries)
        spans.record(WAIT, entry.traceparent, waited, int(entry.id.partition("-")[0]) / 1000)

    async def _reopen(self) -> None:
        log.warning("consumer group %s of %s is gone; creating it again", self._group, self._stream)
        await self.open()

    async def _read_own(self, count: int) -> list[Entry]:
        if self._own_cursor is None:
            return []
        key, held = self._keys(self._stream), frozenset(self._held)
        answer: Any = await self._redis.xreadgroup(self._group, self.name, {key: self._own_cursor}, count=count)
        raw = answer[0][1] if answer else []
        self._own_cursor = raw[-1][0].decode() if raw else None
        return await self._entries(raw, held)

    async def _read_lost(self, count: int) -> list[Entry]:
        """Entries that were delivered in an answer which did not come: pending here, and held by nobody.

        They are looked up and not claimed, so that those which are held do not count as delivered once more.
        """
        if self._losses == (now := losses(self._redis)):
            return []
        key, held, entries = self._keys(self._stream), frozenset(self._held), list[Entry]()
        pending: Any = await self._redis.xpending_range(key, self._group, "-", "+", _MOST_PENDING, self.name)
        for one in pending:
            if one["message_id"].decode() not in held:
                found: Any = await self._redis.xrange(key, one["message_id"], one["message_id"])
                for id_, fields in found:
                    entries.append(Entry.of(id_, fields, one["times_delivered"]))
            if len(entries) == count:
                return entries  # what is left comes with the next read
        self._losses = now
        return entries

    async def _sweep(self, count: int) -> list[Entry]:
        now = asyncio.get_running_loop().time()
        if now < self._next_sweep:
            return []
        held = frozenset(self._held)
        answer: Any = await self._redis.xautoclaim(
            self._keys(self._stream), self._group, self.name,
            min_idle_time=int(self._settings.idle_seconds * 1000), start_id=self._claim_cursor, count=count,
        )  # fmt: skip
        self._claim_cursor = answer[0].decode()
        if self._claim_cursor == "0-0":
            self._next_sweep = now + self._settings.idle_seconds / 2
            silent = int(1000 * _GONE_IDLES * self._settings.idle_seconds)
            await self._retire(keys=[self._keys(self._stream)], args=[self._group, self.name, silent])
        return await self._entries(answer[1], held)

    async def _read_new(self, count: int) -> list[Entry]:
        held = frozenset(self._held)
        answer: Any = await self._redis.xreadgroup(
            self._group, self.name, {self._keys(self._stream): ">"},
            count=count, block=int(self._settings.block_seconds * 1000),
        )  # fmt: skip
        # Where the group was created again, or Redis lost what it had not yet written down, "new" may be one held here.
        raw = answer[0][1] if answer else []
        return [Entry.of(id_, fields, 1) for id_, fields in raw if id_.decode() not in held]

    async def _entries(self, raw: list[tuple[bytes, dict[bytes, bytes] | None]], held: frozenset[str]) -> list[Entry]:
        """Redelivered entries with their delivery counts; those deleted in the meantime have no fields.

        Args:
            held: what was held when they were asked for. One of these may have been settled since.
        """
        entries = []
        for id_, fields in raw:
            if fields and id_.decode() not in held:
                pending: Any = await self._redis.xpending_range(self._keys(self._stream), self._group, id_, id_, 1)
                entries.append(Entry.of(id_, fields, pending[0]["times_delivered"] if pending else 1))
        metrics.REDELIVERIES.labels(self._stream).inc(len(entries))
        return entries


async def _first_of(tasks: set[asyncio.Task[None]]) -> None:
    """Until one of them is done, or room may have come from elsewhere."""
    if tasks:
        await asyncio.wait(tasks, timeout=_ROOM_SECONDS, return_when=asyncio.FIRST_COMPLETED)
    else:
        await asyncio.sleep(_ROOM_SECONDS)
