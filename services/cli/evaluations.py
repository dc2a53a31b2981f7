"""What an evaluation says of the versions that answered it."""

from collections.abc import Mapping
from typing import Any


def versions_in_words(evaluation: Mapping[str, Any]) -> str:
    """Which versions sampled, where it is not the evaluated one alone; else ""."""
    oldest, newest = evaluation["oldest_version"], evaluation["newest_version"]
    if oldest == newest == evaluation["version"]:
        return ""
    return f"sampled by version {oldest}" if oldest == newest else f"sampled by versions {oldest} to {newest}"
