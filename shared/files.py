"""Files that must be whole and must last: checksums and durability."""

import hashlib
import os
from pathlib import Path


def sha256(path: Path) -> str:
    """Of a file's content, lower-case hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Makes a file's content, or a folder's entries, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
