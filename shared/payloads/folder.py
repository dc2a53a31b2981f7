"""A payload store in a folder: a file for each group, on a volume that its writers and readers share.

A file is written under a name that no reader knows and renamed when it is whole. With `fsync` its bytes are durable
before, and its name on return, so that an entry of a stream never outlives what it refers to; without, a power loss may
take the files of the last half a minute. Files are readable by their owner alone: services share a user.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from shared.files import sync
from shared.payloads.store import Stored, source_of

_WRITING = ".writing"
_OWNER_ONLY = 0o600


class FolderStore:
    """Files of one folder, which has to exist."""

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        self._folder = folder
        self._fsync = fsync

    def __str__(self) -> str:
        return f"payloads.folder {self._folder}"

    def put(self, key: str, parts: Sequence[bytes]) -> None:
        path = self._folder / key
        beside = path.with_name(f".{key}{_WRITING}")
        try:
            with open(beside, "wb", buffering=0, opener=_for_owner) as file:  # Path.open has no opener
                for part in parts:
                    left = memoryview(part)
                    while left:
                        left = left[file.write(left) :]
                if self._fsync:
                    os.fsync(file.fileno())
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
        if self._fsync:
            sync(self._folder)

    def get(self, key: str, offset: int = 0, size: int | None = None) -> bytes:
        with (self._folder / key).open("rb", buffering=0) as file:
            wanted = os.fstat(file.fileno()).st_size - offset if size is None else size
            parts = []
            while wanted > 0 and (part := os.pread(file.fileno(), wanted, offset)):
                parts.append(part)
                offset, wanted = offset + len(part), wanted - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def delete(self, key: str) -> None:
        (self._folder / key).unlink(missing_ok=True)
        (self._folder / f".{key}{_WRITING}").unlink(missing_ok=True)

    def list(self) -> Iterator[Stored]:
        with os.scandir(self._folder) as entries:
            for entry in entries:
                key = entry.name.removeprefix(".").removesuffix(_WRITING)
                if source_of(key) is None:
                    continue
                try:
                    status = entry.stat()
                except FileNotFoundError:  # deleted meanwhile
                    continue
                yield Stored(key, status.st_size, status.st_mtime)

    def free_bytes(self) -> int | None:
        return shutil.disk_usage(self._folder).free


def _for_owner(path: str, flags: int) -> int:
    return os.open(path, flags, _OWNER_ONLY)
