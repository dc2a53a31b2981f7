"""What a service that is started alone knows of its run, added to provenance.json in the run's folder.

`run` and `up` write the whole record before they start services. In compose or Kubernetes nobody does: there each
service adds its own tables, the files that they name, and what it runs on. docs/reference/provenance.md has the keys.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from services.cli.provenance import record, stored
from services.cli.provenance.environment import environment
from services.cli.provenance.files import contents, model
from services.cli.provenance.settings import flat, plain
from shared.errors import RouterShiftError
from shared.process.ownership import locked
from shared.resuming import differing
from shared.settings import BaseSettings, RunSettings

log = logging.getLogger(__name__)

_LOCK_SECONDS = 30.0  # others hold it for the time that it takes to write a file
_LOAD_WEIGHTS = ("generation", "learner")
_KEPT_STARTS = 200  # a service that its cluster starts again and again does not fill the disk


def add(service: str, settings: BaseSettings, recipe_file: Path | None) -> None:
    """Adds a start of a service. What keeps it from being written is logged and no error."""
    folder = settings.run.path
    try:
        around = environment()
        known = stored.read(folder) or {}
        files = contents(settings, known.get("files", {}))  # minutes, where data is large: others need the lock
        made = _model(service, settings.run)
        with locked(folder, "provenance", _LOCK_SECONDS):
            before = stored.read(folder) or {}
            stored.save(folder, _with(service, settings, recipe_file, before, around, files, made))
    except (OSError, RouterShiftError, ImportError) as error:  # an image has the packages of its own service alone
        log.warning("what %s runs on is not in %s of the run's folder: %s", service, stored.FILE, error)


def _with(
    service: str,
    settings: BaseSettings,
    recipe_file: Path | None,
    before: Mapping[str, Any],
    around: Mapping[str, Any],
    files: Mapping[str, Any],
    made: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The record of the run with this start in it."""
    folder = settings.run.path
    tables, known, services = plain(settings), before.get("settings", {}), before.get("services", {})
    told = [table for table in tables if table in known]  # by this service before, or by another that has them too
    changed = [
        {"setting": name, "before": was, "now": value}
        for name, was, value in differing(
            flat({table: known[table] for table in told}), flat({table: tables[table] for table in told})
        )
    ]
    earlier = services[service]["environment"] if service in services else None
    start = record.start_entry(folder, f"serve {service}", recipe_file, changed, earlier, around)
    # The learner makes what the run is for: what it runs on stands for the run.
    stands = service == "learner" or "environment" not in before
    return {
        "schema": stored.SCHEMA,
        "run": settings.run.id,
        "created": before.get("created", start["time"]),
        "parent": before.get("parent"),
        "settings": {**known, **tables},
        "model": made or before.get("model") or {"folder": str(settings.run.model), "fingerprint": None},
        "files": {**before.get("files", {}), **files},
        "environment": around if stands else before["environment"],
        "services": {**services, service: {"time": start["time"], "environment": around}},
        "starts": [*before.get("starts", ()), start][-_KEPT_STARTS:],
    }


def _model(service: str, run: RunSettings) -> Mapping[str, Any] | None:
    """The model as a service that loads its weights has it; None of the others, whose images cannot read them."""
    return model(run) if service in _LOAD_WEIGHTS else None
