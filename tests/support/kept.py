"""Folders of runs that have checkpoints to fork from, or versions to export, without a run."""

import json
import shutil
from pathlib import Path

from services.cli.provenance import record
from services.cli.recipe import Recipe
from services.learner.checkpointing import checkpoint
from services.learner.checkpointing.identity import identity
from shared import recipes
from shared.models.folder import copy_descriptions
from shared.settings import BaseSettings, RunSettings
from shared.streams.progress import Progress
from shared.streams.saved import FILE, Saved
from shared.tracking import records
from shared.tracking import settings as recorded
from shared.weights import published
from tests.support.models import save_model
from tests.support.run_records import evaluation

PROGRESS = Progress(prompts=9, selection={"turns": 9}, evaluated_version=4, best_version=4, best_accuracy=0.5)
KEPT = (3, 4)
ACCURACY = {0: 0.1, 3: 0.5, 4: 0.4}


def forkable(model: Path) -> Path:
    """A run of 8 steps with checkpoints of steps 4 and 8 and weights of version 8, in the working folder."""
    save_model(model)
    flags = [f"run.model={model}", "run.task=countdown", "run.id=first", "run.steps=8", "generation.engine=torch"]
    recipe = recipes.load(Recipe, None, {}, flags)
    record.prepare(recipe).write("run", None)
    own = identity(recipe.learner, recipe.run, recipe.rollout)
    for step in (4, 8):
        folder = recipe.run.path / f"checkpoints/step-{step:08d}-0000"
        folder.mkdir(parents=True)
        (folder / "shard.safetensors").write_bytes(b"tensors" * step)
        (folder / checkpoint.STATE).write_text(
            json.dumps({"step": step, "identity": own, "meta": {"groups": {"a": 1}}})
        )
        (folder / FILE).write_text(Saved(step, PROGRESS, {"one": "1 0.500000 0"}).encode())
        checkpoint.describe(folder)
    (recipe.run.path / "weights/v00000008").mkdir(parents=True)
    (recipe.run.path / "weights/v00000008/model.safetensors").write_bytes(b"w")
    return recipe.run.path


def exportable(root: Path) -> Path:
    """A run that keeps versions 3 and 4, of which 3 is the best."""
    folder, base = root / "runs/small", save_model(root / "base")

    def write(into: Path) -> None:
        shutil.copy(base / "model.safetensors", into)
        copy_descriptions(base, into)

    for version in KEPT:
        published.publish(folder / "weights", version, write, keep=4)
        step = {"step": version, "reward_mean": 0.25, "train_accuracy": None, "staleness_max": 2}
        records.append(folder / records.LEARNER, step)
    for version, accuracy in ACCURACY.items():
        records.append(
            folder / records.EVALUATIONS, evaluation(version, accuracy, pass_at_k={"2": 0.6}, greedy_accuracy=0.55)
        )
    settings = BaseSettings(run=RunSettings(id="small", model=base, task="sums|mine", steps=4))
    recorded.write(folder, "curriculum", settings)
    return folder
