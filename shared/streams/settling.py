"""How entries leave their stream: one transaction, once, however often it is asked."""

import asyncio
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable
from itertools import count

from google.protobuf.message import Message
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from routershift.v1 import trajectory_pb2 as pb
from shared.payloads.bulk import Bulk
from shared.settings import StreamSettings
from shared.streams.entries import End, Entry, EntryRef
from shared.streams.keys import READERS, STAGES, Keys, Stream
from shared.streams.payloads import Payloads, Placed
from shared.streams.scripts import Fence, Script
from shared.tracing import spans
from shared.tracing.kinds import DEAD, DROPPED, ROOM, TRAINED, Lost, Room, Trained

log = logging.getLogger(__name__)

# Longer than any command is sent again (redis.outage_seconds).
_REMEMBERED_SECONDS = 300
# What a settlement may take more than its entry twice over, where Redis has no memory.
_SLACK_BYTES = 4096
# A producer that waits says so before each pause. So many pauses later it is taken for gone.
_WAITING_PAUSES = 4
_REMIND_SECONDS = 60.0
_STORE_WAITING_MILLISECONDS = 5000
_NOTHING = Placed(b"", None)


class Settling:
    """Settles the entries of one stream.

    Each settlement has a token that the script remembers: asked again because its answer was lost, it answers what it
    answered before.
    """

    def __init__(
        self,
        redis: Redis,
        keys: Keys,
        stream: Stream,
        settings: StreamSettings,
        name: str,
        fence: Callable[[], Fence] | None = None,
        bulk: Bulk | None = None,
    ) -> None:
        """
        Args:
            name: of the consumer, for the dead letters.
            fence: what this process holds, where it settles for a role of the run.
            bulk: where arrays go; None where they stay in messages, or only pass.
        """
        self._keys = keys
        self._stream = stream
        self._settings = settings
        self._name = name
        self._settle = Script(redis, "settle", fence)
        self._settle_shrinking = Script(redis, "settle_shrinking", fence)
        self._has_room = Script(redis, "room")
        self._payloads = Payloads(redis, keys, settings)
        self._bulk = bulk
        self._redis = redis
        self._process = uuid.uuid4().hex
        self._settlements = count()
        self._said_full = -math.inf

    async def hand_over(self, entry: Entry | EntryRef, destination: Stream, message: Message) -> bool:
        """Replaces the entry by `message` on the next stream, in one transaction.

        Waits while the destination, or Redis itself, is full. False: another consumer had settled the entry.
        """
        payload, reference = await self._detached(entry, message)
        if len(payload) > self._settings.max_entry_bytes:  # nothing is written for a stream that has no room
            await self._room(entry, destination, len(payload))
        done = await self._move(entry, destination, reference, lambda: self._payloads.place(payload))
        if self._bulk and reference != entry.reference:
            if not done:
                await self._bulk.delete(reference, "discarded")
            elif entry.reference:
                await self._bulk.delete(entry.reference)
        return done

    async def pass_on(self, entry: Entry, destination: Stream, tail: bytes) -> bool:
        """As `hand_over`, of the entry's payload with `tail` behind it. Blob and arrays become the next entry's."""
        first = await self._payloads.extend(entry.blob, entry.payload, tail)
        return await self._move(
            entry, destination, entry.reference, lambda: self._payloads.place(entry.payload + tail), first
        )

    async def _move(
        self,
        entry: Entry | EntryRef,
        destination: Stream,
        reference: str,
        place: Callable[[], Awaitable[Placed]],
        placed: Placed | None = None,
    ) -> bool:
        """Args: place: the payload; asked first where it is not yet `placed`, and whenever its blob has expired."""
        token = self._token()
        placed = placed or await place()
        while (answer := await self._run(entry, token, destination, placed, None, reference)) in ("full", "expired"):
            if answer == "full":
                await self._room(entry, destination, placed.size)
            else:
                placed = await place()
        return answer == "ok"

    async def end(self, entry: Entry | EntryRef, end: End) -> bool:
        """Removes the entry and closes its group's account. False: another consumer had settled it.

        Its arrays are deleted afterwards, or swept where this process dies before, or has no payload store.
        """
        done = await self._run(entry, self._token(), None, _NOTHING, end) == "ok"
        if done:
            self._record(entry, end)
            if self._bulk and entry.reference:
                await self._bulk.delete(entry.reference)
        return done

    async def bury(self, entry: Entry, reason: str, detail: str) -> bool:
        """Moves the entry to the dead letters, with its reason, in one transaction. False: it had been settled."""
        letter = pb.DeadLetter(
            stream=self._stream,
            entry_id=entry.id,
            reason=reason,
            detail=detail,
            payload=entry.payload,
            consumer=self._name,
            group=entry.group,
            trajectories=entry.trajectories,
        )
        letter.created_at.GetCurrentTime()
        payload, token = letter.SerializeToString(), self._token()
        answer, end = "expired", End.dead(reason)
        while answer == "expired":
            answer = await self._run(entry, token, "dead", await self._payloads.place(payload), end, entry.reference)
        if answer == "ok":
            self._record(entry, end)
            log.error("dead letter from %s: %s: %s", self._stream, reason, detail, extra={"group": entry.group})
        return answer == "ok"

    async def _detached(self, entry: Entry | EntryRef, message: Message) -> tuple[bytes, str]:
        """The payload of the next entry and its reference."""
        if self._bulk is None or not isinstance(message, pb.TrajectoryGroup):
            return message.SerializeToString(), entry.reference
        return await self._bulk.put(self._stream, entry.id, message, self._wait_for_store)

    async def _wait_for_store(self, size: int) -> None:
        """Lets the learner know that arrays find no room, so that it ends what it trained on."""
        await self._redis.set(self._keys.waiting("payloads"), size, px=_STORE_WAITING_MILLISECONDS)

    def _token(self) -> str:
        return f"{self._process}:{next(self._settlements)}"

    def _record(self, entry: Entry | EntryRef, end: End) -> None:
        """Ends the group's trace as its account ends."""
        if not entry.traceparent:
            return
        group, stream = entry.group, self._stream
        if end.step is not None:
            spans.record(TRAINED, entry.traceparent, Trained(group=group, stream=stream, step=end.step))
            return
        state, _, reason = end.field.partition(":")
        lost = Lost(group=group, stream=stream, reason=reason)
        spans.record(DEAD if state == "dead" else DROPPED, entry.traceparent, lost, failed=reason)

    async def _room(self, entry: Entry | EntryRef, destination: Stream, size: int) -> None:
        """Waits until the destination takes so many bytes, and lets its reader know that somebody waits."""
        began: float | None = None
        keys = [self._keys.bytes, self._keys.waiting(destination)]
        pause = self._settings.block_seconds
        milliseconds = int(1000 * _WAITING_PAUSES * pause)
        while not await self._has_room(keys=keys, args=[destination, size, self._settings.max_bytes, milliseconds]):
            if time.monotonic() > self._said_full + _REMIND_SECONDS:  # as many wait as work at once
                log.warning("stream %s is full; waiting for its reader", destination)
                self._said_full = time.monotonic()
            began = began or time.time()
            await asyncio.sleep(pause)
        if began is not None:
            spans.record(ROOM, entry.traceparent, Room(stream=destination), began)

    async def _run(
        self,
        entry: Entry | EntryRef,
        token: str,
        destination: str | None,
        placed: Placed,
        end: End | None = None,
        reference: str = "",
    ) -> str:
        """Args: reference: key of the arrays that the message refers to."""
        try:
            return await self._attempt(entry, token, destination, placed, end, reference, wait=False)
        except OutOfMemoryError:
            # A payload that is sent beside the script is refused even where its entry frees more than it takes. The
            # script alone is refused only where it takes more, so in this case the payload goes through it.
            return await self._attempt(entry, token, destination, placed.inline, end, reference, wait=True)

    async def _attempt(
        self,
        entry: Entry | EntryRef,
        token: str,
        destination: str | None,
        placed: Placed,
        end: End | None,
        reference: str,
        wait: bool,
    ) -> str:
        k = self._keys
        # Redis without memory refuses what may grow. What makes room, or about as much as it takes, it must not refuse:
        # a full Redis must not stop those who empty it.
        shrinks = placed.size <= 2 * entry.size + _SLACK_BYTES
        answer = await self._payloads.run(
            self._settle_shrinking if shrinks else self._settle,
            keys=[
                k(self._stream), k(destination or self._stream), k.tickets, k.in_flight, k.ledger, k.bytes, k.ended,
                k.settlement(self._stream, entry.id),
                k.blob(entry.blob.id if entry.blob else ""), k.blob(placed.blob_id), k.payloads,
            ],
            arguments=[
                READERS[self._stream], entry.id, entry.size, self._stream, entry.group, entry.trajectories,
                token, _REMEMBERED_SECONDS,
                # The dead letters take everything: nothing may be lost for want of room.
                destination or "", 0 if destination == "dead" else self._settings.max_bytes,
                STAGES[Stream(destination)] if destination and not end else "", *placed.arguments,
                end.field if end else "", "" if end is None or end.step is None else end.step, entry.traceparent,
                entry.reference, reference, int(shrinks),
            ],
            placed=placed,
            wait=wait,
        )  # fmt: skip
        return answer.decode()
