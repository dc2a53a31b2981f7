"""Payloads beside the streams: what is too large for a stream entry lies under a key that lives and dies with it.

A large payload costs most where Redis copies it: into the arguments of a Lua script, and into the pages of a stream.
So only small ones travel through scripts. A larger one is a string of its own (SET, MGET), sent together with the
script that puts its entry on a stream: until that script has made it permanent, it expires. One too large for a single
command is a hash of chunks, written before.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from shared.errors import CorruptDataError
from shared.settings import StreamSettings
from shared.streams.connection import together
from shared.streams.keys import Keys
from shared.streams.scripts import Script

# What no script claims, because its writer has died, expires.
_UNCLAIMED_SECONDS = 600


@dataclass(frozen=True, slots=True)
class Blob:
    """Where a payload beside a stream lies: a string if it has one chunk, else a hash of its chunks."""

    id: str
    chunks: int
    size: int  # bytes
    tail: int = 0  # bytes of the payload that stand in the entry, behind those of the blob

    @classmethod
    def of(cls, fields: Mapping[bytes, bytes]) -> "Blob | None":
        """The one that a stream entry refers to; None for an entry that holds its payload itself."""
        if b"b" not in fields:
            return None
        return cls(fields[b"b"].decode(), int(fields[b"c"]), int(fields[b"z"]), len(fields.get(b"p", b"")))


@dataclass(frozen=True, slots=True)
class Placed:
    """A payload on its way onto a stream, and where it will lie."""

    payload: bytes
    blob: Blob | None
    is_tail: bool = False  # of a blob that is there: it alone is sent, and stays in the entry

    @property
    def blob_id(self) -> str:
        return self.blob.id if self.blob else ""

    @property
    def size(self) -> int:
        """Bytes of the whole payload."""
        if self.blob is None:
            return len(self.payload)
        return self.blob.size + (len(self.payload) if self.is_tail else 0)

    @property
    def arguments(self) -> tuple[bytes, int, str, int]:
        """What a script needs to know: what of the payload travels in the entry, all its bytes, its blob and chunks."""
        if self.blob is None:
            return self.payload, self.size, "", 0
        return self.payload if self.is_tail else b"", self.size, self.blob.id, self.blob.chunks

    @property
    def inline(self) -> "Placed":
        """The same in the entry itself, for a Redis without memory: see `Settling`."""
        return self if self.is_tail else Placed(self.payload, None)


class Payloads:
    """Writes and reads what lies beside the streams of a run."""

    def __init__(self, redis: Redis, keys: Keys, settings: StreamSettings) -> None:
        self._redis = redis
        self._keys = keys
        self._chunk = settings.max_entry_bytes
        self._inline = min(settings.inline_bytes, settings.max_entry_bytes)

    async def place(self, payload: bytes) -> Placed:
        """Decides where it goes. Chunks are written now; a blob of one chunk is written by `run`."""
        if len(payload) <= self._inline:
            return Placed(payload, None)
        starts = range(0, len(payload), self._chunk)
        blob = Blob(uuid.uuid4().hex, len(starts), len(payload))
        if blob.chunks > 1:
            key, pieces = self._keys.blob(blob.id), memoryview(payload)
            for i, start in enumerate(starts):
                piece = pieces[start : start + self._chunk]
                commands = ("HSET", key, i, piece), ("EXPIRE", key, _UNCLAIMED_SECONDS)
                await together(self._redis, *commands, transaction=True)
        return Placed(payload, blob)

    async def extend(self, blob: Blob | None, payload: bytes, tail: bytes) -> Placed:
        """As `place`, of an entry's payload with more behind it: what lies in a blob is not written again.

        Args:
            blob: of the entry, where it has one.
            payload: of the entry, read.
        """
        if blob is None or blob.tail + len(tail) > self._inline:
            return await self.place(payload + tail)
        return Placed(payload[blob.size :] + tail, blob, is_tail=True)

    async def run(
        self, script: Script, keys: Sequence[str], arguments: Sequence[Any], placed: Placed, wait: bool = True
    ) -> bytes:
        """The answer of a script that puts the payload on a stream. Both are sent together.

        The script is the transaction: it does nothing where the payload is not there. NX, because both are sent again
        when an answer was lost: what a script has made permanent stays permanent.

        Args:
            wait: for a Redis without memory.

        Raises:
            OutOfMemoryError: Redis has no memory and `wait` is False.
        """
        if placed.blob is None or placed.is_tail or placed.blob.chunks > 1:
            return bytes(await script(keys, arguments))
        command = ("SET", self._keys.blob(placed.blob.id), placed.payload, "EX", _UNCLAIMED_SECONDS, "NX")
        return bytes(await script.after(command, keys, arguments, wait))

    async def get(self, blob: Blob) -> bytes:
        """One payload. Raises CorruptDataError where a part of it is missing."""
        (payload,) = await self.get_all([blob])
        if isinstance(payload, CorruptDataError):
            raise payload
        return payload

    async def get_all(self, blobs: Sequence[Blob]) -> list[bytes | CorruptDataError]:
        """Payloads in their order; an error in place of one that is not whole.

        One command reads as many as make up the size of a chunk, so that no answer is much longer than that.
        """
        found: dict[str, bytes] = {}
        batch: list[Blob] = []
        for i, blob in enumerate(blobs):
            if blob.chunks > 1:
                key = self._keys.blob(blob.id)
                chunks: list[Any] = [await self._redis.hget(key, str(chunk)) for chunk in range(blob.chunks)]
                found[blob.id] = b"".join(chunk for chunk in chunks if chunk)
            else:
                batch.append(blob)
            if batch and (i == len(blobs) - 1 or sum(b.size for b in batch) >= self._chunk):
                values: list[Any] = await self._redis.mget([self._keys.blob(b.id) for b in batch])
                found |= {b.id: value or b"" for b, value in zip(batch, values, strict=True)}
                batch = []
        return [_whole(blob, found[blob.id]) for blob in blobs]

    async def is_whole(self, blob: Blob) -> bool:
        """Whether all of it is there."""
        key = self._keys.blob(blob.id)
        if blob.chunks == 1:
            return int(await self._redis.strlen(key)) == blob.size
        return int(await self._redis.hlen(key)) == blob.chunks


def _whole(blob: Blob, payload: bytes) -> bytes | CorruptDataError:
    if len(payload) == blob.size:
        return payload
    return CorruptDataError(
        f"payload {blob.id} has {len(payload)} of its {blob.size} bytes; its key was deleted or evicted"
    )
