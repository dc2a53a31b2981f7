"""A new run from a checkpoint of another."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from services.cli.preflight import preflight
from services.cli.provenance import record, stored
from services.cli.provenance.environment import environment
from services.cli.recipe import Recipe
from services.learner.checkpointing import fork as checkpoints
from services.learner.checkpointing.checkpoint import step_of
from services.learner.checkpointing.identity import identity, same_shape
from shared.errors import InvalidInputError, PreconditionError
from shared.files import sync
from shared.recipes import load
from shared.resuming import Rule
from shared.streams.progress import Progress
from shared.streams.saved import FILE, Saved
from shared.tracking import records
from shared.weights import published

_PROBLEMS = ("run.task", "data.", "reward.verifiers.", "environments.named.")  # what a solve rate is of


def fork(parent: Path, run_id: str, step: int | None, flags: Sequence[str]) -> tuple[Path, int]:
    """Makes the folder of the new run beside that of the other, all of it or nothing; nothing is started.

    Args:
        parent: the folder of the other run.
        run_id: of the new one.
        step: of the checkpoint; None: the newest.
        flags: settings that differ from the parent's, `table.key=value` each.

    Returns:
        The folder of the new run, and the step at which it goes on.

    Raises:
        PreconditionError: the parent was made before runs kept their recipe; or there is such a run already.
        NotFoundError: no such checkpoint.
        InvalidInputError: a setting that is none, or changes the shape of the model; or no step would be left.
        CorruptDataError: the checkpoint is torn.
    """
    before = stored.read(parent)
    if before is None:
        raise PreconditionError(f"{parent} has no {records.PROVENANCE}; start that run once more with this version")
    beside = f"run.folder={parent.absolute().parent}"
    recipe = load(Recipe, parent / stored.RECIPE, os.environ, [beside, *flags, f"run.id={run_id}"])
    folder = recipe.run.path
    if folder.exists() and any(folder.iterdir()):
        raise PreconditionError(f"{folder} is there already; take another id")
    source = checkpoints.find(parent / records.CHECKPOINTS, step)
    step = step_of(source)
    if recipe.run.steps <= step:
        raise InvalidInputError(
            f"run.steps is {recipe.run.steps}, and the checkpoint is of step {step}: no step is left; add --set "
            f"run.steps={2 * step}, or take an earlier one with --step"
        )
    preflight(recipe)
    now = record.made_of(recipe, before)
    changes = [each for each in record.changes_between(before, now) if each.setting not in ("run.id", "run.folder")]
    _check_shape(recipe, before, changes)
    origin = {
        "run": before["run"],
        "folder": str(parent.absolute()),
        "step": step,
        "settings_changed": [change.as_record() for change in changes],
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{run_id}-", dir=folder.parent) as temporary:
        made = Path(temporary) / run_id
        made.mkdir()
        texts = {FILE: _carried(source, changes).encode()} if (source / FILE).is_file() else {}
        own = identity(recipe.learner, recipe.run, recipe.rollout)
        checkpoints.fork(source, made / records.CHECKPOINTS, own, texts)
        weights = parent / records.WEIGHTS / published.folder_name(step)
        if weights.is_dir():
            kept = made / records.WEIGHTS / weights.name
            kept.mkdir(parents=True)
            checkpoints.link(weights, kept)
        record.write(made, recipe, now, None, environment(), parent=origin)
        if folder.exists():
            folder.rmdir()
        made.rename(folder)
    sync(folder.parent)
    return folder, step


def _check_shape(recipe: Recipe, before: Mapping[str, Any], changes: Sequence[record.Change]) -> None:
    """Raises InvalidInputError for a change after which the tensors of the checkpoint would not fit."""
    for change in changes:
        if change.rule is Rule.SHAPE and not (
            change.setting == "run.model" and same_shape(Path(before["model"]["folder"]), recipe.run.require_model())
        ):
            raise InvalidInputError(f"{change}: a fork keeps the shape of the model; take that, or begin a run anew")


def _carried(source: Path, changes: Sequence[record.Change]) -> Saved:
    """What the checkpoint carries, but for evaluations, which the new run makes itself from its start on.

    Solve rates and the place in the order of problems hold only where problems and verifiers are the same.
    """
    saved = Saved.decode((source / FILE).read_text(encoding="utf-8"))
    place = Progress(prompts=saved.progress.prompts, selection=saved.progress.selection)
    if any(change.setting.startswith(_PROBLEMS) and change.rule is not Rule.KNOB for change in changes):
        return replace(saved, progress=replace(place, selection=None), solve_rates={})
    return replace(saved, progress=place)
