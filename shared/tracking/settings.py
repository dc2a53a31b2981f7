"""The settings that each service of a run was last started with, in the run's folder: settings/SERVICE.json."""

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import CorruptDataError

# Who only reads them imports no pydantic.
if TYPE_CHECKING:
    from pydantic import BaseModel

log = logging.getLogger(__name__)

FOLDER = "settings"


def write(run: Path, service: str, settings: "BaseModel") -> None:
    """Replaces those of an earlier start. Secrets are masked; a folder that takes no writes is logged and no error."""
    file = run / FOLDER / f"{service}.json"
    beside = file.with_name(f".{service}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(settings.model_dump_json(indent=1) + "\n", encoding="utf-8")
        beside.replace(file)
    except OSError as error:
        log.warning("the settings of this start are not in the run's folder: %s", error)


def read(run: Path) -> dict[str, dict[str, Any]]:
    """All tables by name, as each service had them; none where nothing was written.

    Raises:
        CorruptDataError: a file that is no such record.
    """
    tables: dict[str, dict[str, Any]] = {}
    for file in sorted((run / FOLDER).glob("*.json")):
        try:
            tables |= json.loads(file.read_text(encoding="utf-8"))
        except (ValueError, TypeError) as error:
            raise CorruptDataError(f"{file} holds no settings: {error}; remove it") from None
    return tables
