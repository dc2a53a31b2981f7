"""What pages show of a run, read from its folder; nothing is asked of its services."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.cli.provenance import stored
from shared.errors import CorruptDataError
from shared.resuming import dotted
from shared.tracking import records
from shared.tracking import settings as recorded


@dataclass(frozen=True, slots=True)
class RunData:
    """The records of a run so far. Whatever it has not written is empty."""

    name: str
    folder: Path
    steps: Sequence[Mapping[str, Any]]
    evaluations: Sequence[dict[str, Any]]
    summary: Mapping[str, Any]
    settings: Mapping[str, Any]  # by dotted key
    provenance: Mapping[str, Any]  # by dotted key, without the settings

    @property
    def is_empty(self) -> bool:
        return not self.steps and not self.evaluations


def read(folder: Path) -> RunData:
    """Reads it.

    Raises:
        CorruptDataError: a file that is not the JSON that a run writes.
    """
    provenance = stored.read(folder) or {}
    settings = recorded.read(folder) or provenance.get("settings", {})
    return RunData(
        name=folder.resolve().name,
        folder=folder,
        steps=records.steps(folder / records.LEARNER),
        evaluations=records.read(folder / records.EVALUATIONS),
        summary=_json(folder / records.SUMMARY),
        settings=dotted(settings),
        provenance=dotted({key: value for key, value in provenance.items() if key != "settings"}),
    )


def names(runs: Sequence[RunData]) -> list[str]:
    """A name for each, with as many of its parent folders as it takes to tell it from the others."""
    paths = [run.folder.resolve() for run in runs]
    longest = max(len(path.parts) for path in paths)
    for parts in range(1, longest):
        found = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(found)) == len(set(paths)):
            return found
    return [str(path) for path in paths]


def differences(tables: Sequence[Mapping[str, Any]], own: Iterable[str] = ()) -> dict[str, list[Any]]:
    """What is not the same in all tables, by key; None where one lacks it.

    Args:
        own: keys that differ from run to run and say nothing, or the tables that hold them.
    """
    left_out = tuple(own)
    keys = dict.fromkeys(key for table in tables for key in table)
    found = {
        key: [table.get(key) for table in tables]
        for key in keys
        if not any(key == name or key.startswith(f"{name}.") for name in left_out)
    }
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CorruptDataError(f"{path} is not JSON: {error}; remove it") from None
    if not isinstance(found, dict):
        raise CorruptDataError(f"{path} holds no JSON object; remove it")
    return found
