"""provenance.json in a run's folder: read and replaced as a whole, whoever makes what is in it."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shared.errors import CorruptDataError
from shared.files import write_durably
from shared.tracking import records

RECIPE = "recipe.toml"  # beside it: starts the run again
FILE = records.PROVENANCE
SCHEMA = 1


def read(folder: Path) -> dict[str, Any] | None:
    """What was written at the last start; None where nothing was.

    Raises:
        CorruptDataError: it cannot be read, or a later version has written it.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        schema = record["schema"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CorruptDataError(f"{file} is no record of a run: {error}; bring it back from a copy") from None
    if schema != SCHEMA:
        raise CorruptDataError(f"{file} has schema {schema}, this version reads {SCHEMA}; use the one that wrote it")
    return record


def save(folder: Path, record: Mapping[str, Any]) -> None:
    """Replaces it. Raises OSError where the disk takes no writes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_durably(folder / FILE, records.dumps(record, indent=1) + "\n")


def now() -> str:
    """The time as it is written there: UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
