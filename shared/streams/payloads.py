"""Payloads too large for one stream entry: in chunks, under a key of their own that lives and dies with the entry."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from shared.errors import CorruptDataError
from shared.streams.keys import Keys
from shared.streams.scripts import source

# A blob is written before the hand-over that makes it permanent. If its writer dies in between it goes by itself.
_UNCLAIMED_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Blob:
    """Where a large payload lies."""

    id: str
    chunks: int
    size: int  # bytes

    @classmethod
    def of(cls, fields: Mapping[bytes, bytes]) -> "Blob | None":
        """The one that a stream entry refers to; None for an entry that holds its payload itself."""
        if b"b" not in fields:
            return None
        return cls(fields[b"b"].decode(), int(fields[b"c"]), int(fields[b"z"]))


class Payloads:
    """Writes and reads what lies beside the streams of a run."""

    def __init__(self, redis: Redis, keys: Keys, max_entry_bytes: int) -> None:
        self._redis = redis
        self._keys = keys
        self._chunk = max_entry_bytes
        self._write = redis.register_script(source("chunk.lua"))

    async def put(self, payload: bytes) -> Blob | None:
        """Writes a payload that is too large for an entry; None, and nothing is done, for any other."""
        if len(payload) <= self._chunk:
            return None
        pieces = memoryview(payload)
        starts = range(0, len(payload), self._chunk)
        blob = Blob(uuid.uuid4().hex, len(starts), len(payload))
        for i, start in enumerate(starts):
            piece = pieces[start : start + self._chunk]
            await self._write(keys=[self._keys.blob(blob.id)], args=[i, piece, _UNCLAIMED_SECONDS])
        return blob

    async def get(self, blob: Blob) -> bytes:
        """The payload. Raises CorruptDataError where a part of it is missing."""
        chunks: list[Any] = [await self._redis.hget(self._keys.blob(blob.id), str(i)) for i in range(blob.chunks)]
        payload = b"".join(chunk for chunk in chunks if chunk)
        if len(payload) != blob.size:
            raise CorruptDataError(
                f"payload {blob.id} has {len(payload)} of its {blob.size} bytes; its key was deleted or evicted"
            )
        return payload
