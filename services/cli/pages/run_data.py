"""What pages show of a run, read from its folder; nothing is asked of its services."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import CorruptDataError
from shared.tracking import records
from shared.tracking import settings as recorded

SUMMARY = "summary.json"
PROVENANCE = "provenance.json"


@dataclass(frozen=True, slots=True)
class RunData:
    """The records of a run so far. Whatever it has not written is empty."""

    name: str
    folder: Path
    steps: Sequence[Mapping[str, Any]]
    evaluations: Sequence[dict[str, Any]]
    summary: Mapping[str, Any]
    settings: Mapping[str, Any]  # by dotted key
    provenance: Mapping[str, Any]  # by dotted key

    @property
    def is_empty(self) -> bool:
        return not self.steps and not self.evaluations


def read(folder: Path) -> RunData:
    """Reads it.

    Raises:
        CorruptDataError: a file that is not the JSON that a run writes.
    """
    return RunData(
        name=folder.resolve().name,
        folder=folder,
        steps=records.steps(folder / records.LEARNER),
        evaluations=records.read(folder / records.EVALUATIONS),
        summary=_json(folder / SUMMARY),
        settings=flat(recorded.read(folder)),
        provenance=flat(_json(folder / PROVENANCE)),
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


def flat(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables by dotted key; a list is a value."""
    found: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differences(runs: Sequence[RunData]) -> dict[str, list[Any]]:
    """Settings that are not the same in all runs, by key; None where a run has no such setting.

    The id and the folder of a run always differ and are left out.
    """
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    found = {key: [run.settings.get(key) for run in runs] for key in keys if key not in ("run.id", "run.folder")}
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
