"""A learner whose versions go over the network: which of them have files, and what follows a restart."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from services.cli.exporting.folder import _source
from services.generation.engines.torch.engine import TorchEngine
from services.generation.engines.torch.model import _tensors_of
from services.learner.settings import Settings as LearnerTables
from shared.errors import NotFoundError
from shared.settings import RunSettings
from shared.streams.keys import Stream
from shared.streams.run import Run
from shared.weights import published
from tests.support.entries import SAMPLES, message, put, until
from tests.support.generation_worker import metric
from tests.support.learning import GROUPS, Learning, tables
from tests.support.models import save_model
from tests.support.replicas import replica
from tests.support.rollouts import load, random_groups

STEPS = 6


def settings(folder: Path, model: Path) -> LearnerTables:
    chosen = tables(folder, model, steps=STEPS, optimizer__learning_rate=1e-6, checkpoints__every=2)
    changes = {"weights_transfer": "broadcast", "weights_full_every": 4, "max_staleness": STEPS}
    return chosen.model_copy(update={"run": RunSettings(**{**chosen.run.model_dump(), **changes})})


async def to(version: int, *engines: TorchEngine) -> None:
    async def all_do() -> bool:
        return all(engine.version == version for engine in engines)

    await until(all_do)


def serves(engine: TorchEngine, folder: Path) -> bool:
    """Whether it has the weights of a folder bit for bit."""
    found = _tensors_of(engine._batch.policy)
    return all(torch.equal(found[n].to(t.dtype), t) for n, t in load_file(folder / "model.safetensors").items())


async def test_versions_that_are_kept_have_files_and_replicas_follow_through_restarts_of_the_learner(
    run: Run, tmp_path: Path
) -> None:
    model = save_model(tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(model)
    groups = [message(group, i) for i, group in enumerate(random_groups(load(model), STEPS * GROUPS, SAMPLES))]
    chosen, nowhere = settings(tmp_path, model), tmp_path / "nowhere"
    root = chosen.run.weights_root
    async with replica(run, "one", model, nowhere) as one:
        await put(run, Stream.SCORED, *groups[: 3 * GROUPS])
        changes = metric("weights_bytes_total", kind="broadcast_delta")
        async with Learning(chosen, run):
            await to(3, one)
        assert metric("weights_bytes_total", kind="broadcast_delta") > changes
        async with replica(run, "late", model, nowhere) as late, Learning(chosen, run):
            await to(3, one, late)  # what the learner goes on from, to whoever lacks it
            await put(run, Stream.SCORED, *groups[3 * GROUPS :])
            await to(STEPS, one, late)
        newest = root / published.folder_name(STEPS)
        assert serves(one, newest)
        assert serves(late, newest)
    assert published.versions(root) == [3, 4, 5, 6]
    assert [published.has_files(root / published.folder_name(version)) for version in (3, 4, 5, 6)] == [
        False,
        True,
        False,
        True,
    ]
    with pytest.raises(NotFoundError, match=r"version 5 of run learn is not kept; give --version, kept: 4, 6"):
        _source(chosen.run.path, 5, adapter=False)
