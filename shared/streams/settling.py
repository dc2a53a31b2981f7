"""How entries leave their stream: one script, once, however often it is asked."""

import asyncio
import logging
import uuid
from itertools import count

from google.protobuf.message import Message
from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from shared.settings import StreamSettings
from shared.streams.entries import End, Entry
from shared.streams.keys import READERS, STAGES, Keys, Stream
from shared.streams.payloads import Blob, Payloads
from shared.streams.scripts import source

log = logging.getLogger(__name__)

# Longer than any command is sent again (redis.outage_seconds).
_REMEMBERED_SECONDS = 300


class Settling:
    """Settles the entries of one stream.

    Each settlement has a token that the script remembers: asked again because its answer was lost, it answers what it
    answered before.
    """

    def __init__(self, redis: Redis, keys: Keys, stream: Stream, settings: StreamSettings, name: str) -> None:
        """Args: name: of the consumer, for the dead letters."""
        self._redis = redis
        self._keys = keys
        self._stream = stream
        self._settings = settings
        self._name = name
        self._script = redis.register_script(source("settle.lua"))
        self._payloads = Payloads(redis, keys, settings.max_entry_bytes)
        self._life = uuid.uuid4().hex
        self._settlements = count()

    async def hand_over(self, entry: Entry, destination: Stream, message: Message) -> bool:
        """Replaces the entry by `message` on the next stream, in one transaction.

        Waits while the destination, or Redis itself, is full. False: another consumer had settled the entry.
        """
        payload = message.SerializeToString()
        limit = self._settings.max_bytes
        if len(payload) > self._settings.max_entry_bytes:  # nothing is written for a stream that has no room
            await self._room(destination, len(payload))
        token = self._token()
        blob = await self._payloads.put(payload)
        while (answer := await self._run(entry, token, destination, limit, payload, blob)) in ("full", "expired"):
            if answer == "full":
                await self._room(destination, len(payload))
            else:
                blob = await self._payloads.put(payload)
        return answer == "ok"

    async def end(self, entry: Entry, end: End) -> bool:
        """Removes the entry and closes its group's account. False: another consumer had settled it."""
        return await self._run(entry, self._token(), None, 0, b"", None, end) == "ok"

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
        answer = "expired"
        while answer == "expired":
            blob = await self._payloads.put(payload)
            answer = await self._run(entry, token, "dead", 0, payload, blob, End.dead(reason))
        if answer == "ok":
            log.error("dead letter from %s: %s: %s", self._stream, reason, detail, extra={"group": entry.group})
        return answer == "ok"

    def _token(self) -> str:
        return f"{self._life}:{next(self._settlements)}"

    async def _room(self, destination: Stream, size: int) -> None:
        """Waits until the destination takes so many bytes: as settle.lua judges it, without sending them."""
        waited = False
        while held := int(await self._redis.hget(self._keys.bytes, destination) or 0):
            if held + size <= self._settings.max_bytes:
                return
            if not waited:
                log.warning("stream %s is full; waiting for its reader", destination)
                waited = True
            await asyncio.sleep(self._settings.block_seconds)

    async def _run(
        self,
        entry: Entry,
        token: str,
        destination: str | None,
        limit: int,
        payload: bytes,
        blob: Blob | None,
        end: End | None = None,
    ) -> str:
        k = self._keys
        answer: bytes = await self._script(
            keys=[
                k(self._stream), k(destination or self._stream), k.tickets, k.in_flight, k.ledger, k.bytes, k.ended,
                k.settlement(self._stream, entry.id),
                k.blob(entry.blob.id if entry.blob else ""), k.blob(blob.id if blob else ""),
            ],
            args=[
                READERS[self._stream], entry.id, entry.size, self._stream, entry.group, entry.trajectories,
                token, _REMEMBERED_SECONDS,
                destination or "", limit, STAGES[Stream(destination)] if destination and not end else "",
                b"" if blob else payload, len(payload), blob.id if blob else "", blob.chunks if blob else 0,
                end.field if end else "", "" if end is None or end.step is None else end.step,
            ],
        )  # fmt: skip
        return answer.decode()
