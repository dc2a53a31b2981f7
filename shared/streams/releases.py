"""Releases of Redis and Valkey, and which of them have the fixes that a server of our streams needs.

CVE-2025-49844: an authenticated user runs code of its own by a Lua script (GHSA-4789-qfc9-5f9q); our streams need
scripts. CVE-2026-23479: one runs code by a blocked read, of which our streams consist. CVE-2024-31228: a pattern ends
the server. Valkey's releases of 2026-07-21 also have the fix of CVE-2026-56684, a use after free under TLS. What needs
a right that no user of a service has, as RESTORE (CVE-2026-25243, CVE-2026-66373), is not counted. Looked up on
2026-11-29, in what is said of the releases in public repositories.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Version = tuple[int, int, int]

# The first release of each line that has these fixes. A line above all of these has them, and one between has not.
FIXED: Mapping[str, tuple[Version, ...]] = {
    "Redis": ((6, 2, 22), (7, 2, 14), (7, 4, 9), (8, 2, 6), (8, 4, 3), (8, 6, 3)),
    "Valkey": ((7, 2, 14), (8, 0, 10), (8, 1, 9), (9, 0, 5), (9, 1, 1)),
}
_SAID = re.compile(r"^(Redis|Valkey) server v=(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Release:
    """A server's name and version; as text `Redis 7.0.15`."""

    name: str
    version: Version

    def __str__(self) -> str:
        return f"{self.name} {'.'.join(map(str, self.version))}"

    @property
    def is_fixed(self) -> bool:
        """Whether the release has the fixes. A distribution may have put them into an older one, unseen."""
        fixed = FIXED[self.name]
        line = [first for first in fixed if first[:2] == self.version[:2]]
        return self.version >= line[0] if line else self.version > fixed[-1]

    @property
    def has_functions(self) -> bool:
        """Whether it has functions, and users with selectors."""
        return self.name == "Valkey" or self.version >= (7, 0, 0)

    @property
    def has_waitaof(self) -> bool:
        """Whether it can be asked if a write is on disk."""
        return self.name == "Valkey" or self.version >= (7, 2, 0)

    @property
    def warning(self) -> str | None:
        """What is missing and which releases have it, in one sentence; None where nothing is."""
        if self.is_fixed:
            return None
        enough = ", ".join(".".join(map(str, version)) for version in FIXED[self.name])
        return (
            f"{self} lacks fixes of CVE-2025-49844, CVE-2026-23479 or CVE-2024-31228, by which its users run code or "
            f"end it, unless your distribution put them in; {self.name} {enough} and above have them"
        )


def of_info(info: Mapping[str, Any]) -> Release:
    """The release that `INFO server` tells. Valkey calls itself a Redis too, for the sake of clients."""
    valkey = str(info.get("server_name", "")) == "valkey"
    name, text = ("Valkey", info["valkey_version"]) if valkey else ("Redis", info["redis_version"])
    return Release(name, _version(str(text)))


def of_words(said: str) -> Release | None:
    """The release that a program tells with `--version`; None where it is neither."""
    match = _SAID.match(said)
    return Release(match[1], (int(match[2]), int(match[3]), int(match[4]))) if match else None


def _version(text: str) -> Version:
    major, minor, patch = (int(part) for part in re.findall(r"\d+", text)[:3])
    return major, minor, patch
