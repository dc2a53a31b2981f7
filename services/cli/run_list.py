"""The runs of a folder, as their folders tell of them: no service is asked."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.cli.evaluations import of_main_set
from services.cli.provenance import record, stored
from shared.errors import CorruptDataError
from shared.process.ownership import holder
from shared.tracking import records

# What only the folder of a run has.
_SIGNS = (records.PROVENANCE, records.LEARNER, records.EVALUATIONS, records.ENDPOINTS)


@dataclass(frozen=True, slots=True)
class Listed:
    """What is shown of a run."""

    id: str
    state: str  # running, finished, stopped, new (it has not begun), or unknown (its learner is on another machine)
    steps: int  # done
    total_steps: int | None
    best_accuracy: float | None  # sampled, on the main held-out set
    started: str | None  # the first time; ISO 8601, UTC
    recipe: str | None  # the file that it was first started with
    parent: str | None  # RUN@STEP of a fork
    disk_bytes: int  # files that are linked more than once count once
    folder: str
    fault: str | None  # what of it cannot be read


def runs(folder: Path) -> list[Listed]:
    """All runs whose folders lie in this one, the newest start last; also of those whose records are broken."""
    found = [_listed(each) for each in sorted(folder.iterdir()) if any((each / sign).is_file() for sign in _SIGNS)]
    return sorted(found, key=lambda listed: listed.started or "")


def _listed(folder: Path) -> Listed:
    fault: str | None = None
    made: dict[str, Any] = {}
    try:
        made = stored.read(folder) or {}
        steps, evaluations = records.steps(folder / records.LEARNER), records.read(folder / records.EVALUATIONS)
    except (CorruptDataError, OSError, ValueError, KeyError) as error:
        steps, evaluations, fault = [], [], str(error)
    starts, parent = made.get("starts", []), made.get("parent")
    done = max(steps[-1]["step"] if steps else 0, record.checkpointed_step(folder) or 0)
    total = made.get("settings", {}).get("run", {}).get("steps")
    main = of_main_set(evaluations)
    first = starts[0]["time"] if starts else (steps or evaluations or [{"time": None}])[0]["time"]
    return Listed(
        id=made.get("run", folder.name),
        state=_state(folder, done, total, begun=bool(starts or steps or evaluations)),
        steps=done,
        total_steps=total,
        best_accuracy=max((each["accuracy"] for each in main), default=None),
        started=first,
        recipe=starts[0]["recipe"] if starts else None,
        parent=f"{parent['run']}@{parent['step']}" if parent else None,
        disk_bytes=sum(dict(_sizes(folder)).values()),
        folder=str(folder),
        fault=fault,
    )


def _state(folder: Path, done: int, total: int | None, *, begun: bool) -> str:
    learner = holder(folder, "learner")
    if learner is not None and not learner.is_gone:
        return "running" if learner.is_here else "unknown"
    if _summarised_step(folder) == done or (total is not None and done >= total):
        return "finished"
    return "stopped" if begun else "new"


def _summarised_step(folder: Path) -> int | None:
    """The step at which `run` has come to its end; None where it has not."""
    try:
        step = json.loads((folder / records.SUMMARY).read_text(encoding="utf-8"))["steps"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def _sizes(folder: Path) -> Iterator[tuple[tuple[int, int], int]]:
    """The identity and the size in bytes of every file below a folder. What goes away meanwhile has none."""
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                about = (Path(place) / name).lstat()
            except OSError:
                continue
            yield (about.st_dev, about.st_ino), about.st_size
