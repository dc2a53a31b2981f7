"""What a payload store is: objects by key, written once, read in parts, deleted."""

import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.errors import CorruptDataError

# The source stream and entry of the group, and what no other process or attempt has: `new_key` makes them.
_KEY = re.compile(r"(?P<stream>[a-z]+)-(?P<entry>\d+-\d+)-[0-9a-f]{16}")
# An object that says that this is the store of a run: without it the volume is another one, or not mounted.
MARKER = "payload-store"


@dataclass(frozen=True, slots=True)
class Stored:
    """An object of a store, as a listing has it."""

    key: str
    size: int  # bytes
    modified: float  # seconds since 1970, by the clock of the store


class PayloadStore(Protocol):
    """Objects by key. Calls block and are made in threads; each is safe beside any other.

    A key is written once: `put` never changes what a reader of another key sees. Where the store cannot be had, calls
    raise an OSError: ENOSPC or EDQUOT where it is full.
    """

    def put(self, key: str, parts: Sequence[bytes]) -> None:
        """Writes the parts one after the other. Readers see all of them or none, whenever the writer dies."""
        ...

    def get(self, key: str, offset: int = 0, size: int | None = None) -> bytes:
        """Bytes from `offset` on, fewer than `size` where the object ends; all for None.

        Raises:
            FileNotFoundError: there is no such object.
        """
        ...

    def delete(self, key: str) -> None:
        """Removes an object, and what a writer of it left half-written; there may be none."""
        ...

    def list(self) -> Iterator[Stored]:
        """All objects whose keys `source_of` knows, half-written ones included."""
        ...

    def free_bytes(self) -> int | None:
        """Room that is left; None where the store does not say."""
        ...

    def __str__(self) -> str:
        """The setting and its value, for a person to find it."""
        ...


def new_key(stream: str, entry: str) -> str:
    """A key that nobody has: what another attempt at the same group writes is another object.

    Args:
        stream: that the group's prompt came from.
        entry: of the prompt.
    """
    return f"{stream}-{entry}-{secrets.token_hex(8)}"


def source_of(key: str) -> tuple[str, str] | None:
    """The stream and the entry whose group the object holds; None for a name that is no key."""
    found = _KEY.fullmatch(key)
    return (found["stream"], found["entry"]) if found else None


def check_key(key: str) -> str:
    """The key. Raises CorruptDataError where it is none, such as a path."""
    if source_of(key) is None:
        raise CorruptDataError(f"payload.key is {key!r}; expected STREAM-ENTRY-RANDOM, as RouterShift makes them")
    return key
