"""Files that must be whole and must last: checksums and durability."""

import hashlib
import os
import re
from io import FileIO
from pathlib import Path

from shared.errors import RouterShiftError

_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Makes a file's content, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(file: FileIO, data: bytes, end: int) -> None:
    """Writes all of `data` at the end of an unbuffered file, or cuts the file to `end` bytes and raises OSError."""
    try:
        while data:
            data = data[file.write(data) :]
    except OSError:
        file.truncate(end)
        raise


def write_durably(path: Path, text: str) -> None:
    """Writes a file that is there with all of its text (UTF-8), or as it was before; durable on return.

    Raises:
        OSError: the disk is full, read-only or gone.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8")
        sync(beside)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def refusal(error: Exception) -> OSError | None:
    """What the operating system said where `error` is a write that it refused; None for any other error.

    A disk that is full, read-only or gone is such a refusal. safetensors has words for it, but no class.
    """
    if isinstance(error, RouterShiftError):
        return None  # some of these are OSErrors too
    if isinstance(error, OSError):
        return error
    if type(error).__name__ == "SafetensorError" and (number := _OS_ERROR.search(str(error))):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    return None
