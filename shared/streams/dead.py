"""The dead letters of a run: what could not be used, with its reason, until a person looks at it."""

from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from shared.errors import InvalidInputError, NotFoundError, OverloadedError, PreconditionError
from shared.settings import StreamSettings
from shared.streams.entries import Entry, parse
from shared.streams.keys import STAGES, Keys, Stream, streams_of
from shared.streams.payloads import Payloads
from shared.streams.scripts import Script

_PAGE = 16


class DeadLetters:
    """Reads, replays and purges them."""

    def __init__(self, redis: Redis, keys: Keys, settings: StreamSettings) -> None:
        self._redis = redis
        self._keys = keys
        self._settings = settings
        self._payloads = Payloads(redis, keys, settings)
        self._replay = Script(redis, "replay")
        self._purge = Script(redis, "purge")

    async def ids(self) -> list[str]:
        """The ids of all dead letters, oldest first."""
        return [entry.id async for entry in self._entries()]

    async def all(self) -> AsyncIterator[tuple[str, pb.DeadLetter]]:
        """All dead letters with their ids, oldest first. Raises CorruptDataError where a part of one is lost."""
        async for entry in self._entries():
            yield entry.id, await self._open(entry)

    async def get(self, letter_id: str) -> pb.DeadLetter:
        """One dead letter. Raises NotFoundError."""
        return await self._open(await self._entry(letter_id))

    async def replay(self, letter_id: str) -> None:
        """Puts the payload back on the stream that it came from; its group is in flight again and holds a ticket.

        Raises:
            NotFoundError: no such dead letter, or it was replayed or purged before.
            InvalidInputError: its payload was lost, so that there is nothing to replay.
            PreconditionError: the group is in flight.
            OverloadedError: the stream is full.
        """
        entry = await self._entry(letter_id)
        letter = await self._open(entry)
        if not letter.payload:
            raise InvalidInputError(f"dead letter {letter_id} has no payload ({letter.detail}); purge it")
        stream, k = Stream(letter.stream), self._keys
        answer = b"expired"
        while answer == b"expired":
            placed = await self._payloads.place(letter.payload)
            answer = await self._payloads.run(
                self._replay,
                keys=[
                    k.dead, k(stream), k.tickets, k.in_flight, k.ledger, k.bytes, k.ended,
                    k.blob(entry.blob.id if entry.blob else ""), k.blob(placed.blob_id),
                ],
                arguments=[
                    letter_id, entry.size, letter.group, letter.trajectories, letter.reason,
                    stream, self._settings.max_bytes, STAGES[stream], *placed.arguments, entry.traceparent,
                    entry.reference, *streams_of(STAGES[stream]),
                ],
                placed=placed,
            )  # fmt: skip
        if answer == b"gone":
            raise _unknown(letter_id)
        if answer == b"alive":
            raise PreconditionError(f"group {letter.group} of dead letter {letter_id} is in flight; purge it")
        if answer == b"full":
            raise OverloadedError(f"stream {stream} is full; replay {letter_id} again when its reader has made room")

    async def purge(self, letter_id: str) -> None:
        """Deletes it; its trajectories stay counted as dead. Raises NotFoundError.

        What it refers to in the payload store is left to the learner's sweep.
        """
        entry = await self._entry(letter_id)
        keys = [
            self._keys.dead, self._keys.bytes, self._keys.blob(entry.blob.id if entry.blob else ""), self._keys.payloads
        ]  # fmt: skip
        if not await self._purge(keys=keys, args=[letter_id, entry.size, entry.reference]):
            raise _unknown(letter_id)

    async def _entries(self) -> AsyncIterator[Entry]:
        start = "-"
        while True:
            page: Any = await self._redis.xrange(self._keys.dead, start, "+", _PAGE)
            if not page:
                return
            for id_, fields in page:
                yield Entry.of(id_, fields, 1)
            start = f"({page[-1][0].decode()}"

    async def _entry(self, letter_id: str) -> Entry:
        if letter_id.replace("-", "", 1).isdecimal():
            found: Any = await self._redis.xrange(self._keys.dead, letter_id, letter_id)
            for id_, fields in found:
                return Entry.of(id_, fields, 1)
        raise _unknown(letter_id)

    async def _open(self, entry: Entry) -> pb.DeadLetter:
        if entry.blob is None:
            return parse(pb.DeadLetter, entry)
        return pb.DeadLetter.FromString(await self._payloads.get(entry.blob))


def _unknown(letter_id: str) -> NotFoundError:
    return NotFoundError(f"there is no dead letter {letter_id!r}; `routershift dead RUN list` has the ids")
