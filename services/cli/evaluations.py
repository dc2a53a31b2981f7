"""What the records of evaluations say: of the main held-out set, and of the versions that answered."""

from collections.abc import Mapping, Sequence
from typing import Any


def of_main_set(evaluations: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of the held-out set that decides which version is the best."""
    return [evaluation for evaluation in evaluations if evaluation["main"]]


def by_set(evaluations: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Those of each held-out set, by its name, in order."""
    names = dict.fromkeys(evaluation["set"] for evaluation in evaluations)
    return {name: [evaluation for evaluation in evaluations if evaluation["set"] == name] for name in names}


def versions_in_words(evaluation: Mapping[str, Any]) -> str:
    """Which versions sampled, where it is not the evaluated one alone; else ""."""
    oldest, newest = evaluation["oldest_version"], evaluation["newest_version"]
    if oldest == newest == evaluation["version"]:
        return ""
    return f"sampled by version {oldest}" if oldest == newest else f"sampled by versions {oldest} to {newest}"
