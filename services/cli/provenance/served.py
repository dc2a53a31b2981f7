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
        with locked(folder, "provenance", _LOCK_SECONDS):
            before = stored.read(folder)
            stored.save(folder, _with(service, settings, recipe_file, before or {}, around))
    except (OSError, RouterShiftError, ImportError) as error:  # an image has the packages of its own service alone
        log.warning("what %s runs on is not in %s of the run's folder: %s", service, stored.FILE, error)


def _with(
    service: str, settings: BaseSettings, recipe_file: Path | None, before: Mapping[str, Any], around: Mapping[str, Any]
) -> dict[str, Any]:
    """The record of the run with this start in it."""
    tables, known, services = plain(settings), before.get("settings", {}), before.get("services", {})
    changed = [
        {"setting": name, "before": was, "now": value}
        for name, was, value in differing(
            flat({table: known[table] for table in tables if table in known}), flat(tables)
        )
        if name.partition(".")[0] in known
    ]
    earlier = services.get(service)
    moved = differing(flat(earlier["environment"]), flat(around)) if earlier else ()
    now = stored.now()
    start = {
        "time": now,
        "command": f"serve {service}",
        "recipe": str(recipe_file.absolute()) if recipe_file else None,
        "step": record.checkpointed_step(settings.run.path) or 0,
        "settings_changed": changed,
        "environment_changed": [{"name": name, "before": was, "now": value} for name, was, value in moved],
    }
    # The learner makes what the run is for: what it runs on stands for the run.
    stands = service == "learner" or "environment" not in before
    return {
        "schema": stored.SCHEMA,
        "run": settings.run.id,
        "created": before.get("created", now),
        "parent": before.get("parent"),
        "settings": {**known, **tables},
        "model": _model(service, settings.run, before.get("model")),
        "files": {**before.get("files", {}), **contents(settings, before.get("files", {}))},
        "environment": around if stands else before["environment"],
        "services": {**services, service: {"time": now, "environment": around}},
        "starts": [*before.get("starts", ()), start][-_KEPT_STARTS:],
    }


def _model(service: str, run: RunSettings, known: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The model as a service that loads its weights has it; the images of the others cannot read them."""
    if service in _LOAD_WEIGHTS:
        return model(run)
    return known or {"folder": str(run.model), "fingerprint": None}
