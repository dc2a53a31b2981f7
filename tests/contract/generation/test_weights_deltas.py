"""Weights made of those that serve and of what changed: exact, or read whole, and it is said why."""

import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from routershift.v1 import trajectory_pb2 as pb
from services.generation.engines.torch.engine import TorchEngine
from services.generation.weights import source
from services.generation.weights.loader import WeightsLoader
from shared.errors import InvalidInputError, PreconditionError
from shared.process.service import background
from shared.settings import RunSettings
from shared.streams.keys import Stream
from shared.streams.run import Run
from shared.weights import delta, published
from tests.support.entries import SAMPLES, message, put
from tests.support.generation_worker import metric, publish_mixture, torch_engine, until
from tests.support.learning import GROUPS, Learning, tables
from tests.support.models import save_model
from tests.support.rollouts import load, random_groups

SHARE = 0.02  # of entries, from each version to the next


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("models")
    return save_model(root / "a"), save_model(root / "b", seed=1)


class Learner:
    """Publishes versions, each with what changed since the one before."""

    def __init__(self, root: Path, models: tuple[Path, Path]) -> None:
        self.root = root
        self._models = models

    def publish(self, version: int, *, share: float | None = None, whole: bool = False) -> pb.WeightsManifest:
        base = None if whole else version - 1
        return publish_mixture(self.root, version, *self._models, SHARE * version if share is None else share, base)


@pytest.fixture
def learner(tmp_path: Path, models: tuple[Path, Path]) -> Learner:
    return Learner(tmp_path / "weights", models)


@asynccontextmanager
async def serving(learner: Learner, models: tuple[Path, Path]) -> AsyncIterator[tuple[TorchEngine, WeightsLoader]]:
    async with torch_engine(models[0]) as engine:
        yield engine, WeightsLoader(engine, learner.root)


def served(engine: TorchEngine) -> str:
    """A hash of all weights that sample now."""
    digest = hashlib.sha256()
    for name, tensor in sorted(engine._batch.policy.model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


async def whole(manifest: pb.WeightsManifest, root: Path, model: Path) -> str:
    """That hash of an engine which has read the files of a version."""
    alone = pb.WeightsManifest()
    alone.CopyFrom(manifest)
    alone.ClearField("delta")
    async with torch_engine(model) as engine:
        await WeightsLoader(engine, root).load(alone)
        return served(engine)


def refused(reason: str) -> float:
    return metric("weights_deltas_refused_total", reason=reason)


def moved(kind: str) -> float:
    return metric("weights_bytes_total", kind=kind)


async def test_each_version_is_made_of_the_one_before(learner: Learner, models: tuple[Path, Path]) -> None:
    async with serving(learner, models) as (engine, loader):
        await loader.load(learner.publish(1))
        full, changes = moved("full"), moved("delta")
        for version in (2, 3, 4):
            manifest = learner.publish(version)
            await loader.load(manifest)
            assert served(engine) == await whole(manifest, learner.root, models[0])
        assert moved("full") == full + 3 * manifest.files[0].size_bytes  # of those that were compared with
        assert 0 < moved("delta") - changes < 0.3 * manifest.files[0].size_bytes


async def test_versions_that_were_missed_are_made_of_all_changes_since(
    learner: Learner, models: tuple[Path, Path]
) -> None:
    async with serving(learner, models) as (engine, loader):
        await loader.load(learner.publish(1))
        manifests = [learner.publish(version) for version in (2, 3, 4)]
        before = moved("delta")
        await loader.load(manifests[-1])
        assert moved("delta") - before == sum(each.delta.files[0].size_bytes for each in manifests)
        assert served(engine) == await whole(manifests[-1], learner.root, models[0])


async def test_a_base_that_the_learner_has_removed_is_held_open(learner: Learner, models: tuple[Path, Path]) -> None:
    async with serving(learner, models) as (engine, loader):
        first = learner.publish(1)
        await loader.load(first)
        for version in (2, 3):
            manifest = learner.publish(version)
            for file in (learner.root / published.folder_name(version - 1)).glob("*.safetensors"):
                file.unlink()
            before = moved("delta")
            await loader.load(manifest)
            assert moved("delta") > before
        assert served(engine) == await whole(manifest, learner.root, models[0])


@pytest.mark.parametrize("damage", ["flipped", "cut off", "gone", "base of another learner", "a version without one"])
async def test_what_cannot_be_used_is_read_whole_and_it_is_said_why(
    learner: Learner, models: tuple[Path, Path], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    said = {
        "flipped": ("corruptdata", "has SHA-256"),
        "cut off": ("corruptdata", "bytes; the manifest says"),
        "gone": ("notfound", "is missing"),
        "base of another learner": ("corruptdata", "made by its delta, has SHA-256"),
        "a version without one": ("base", "its delta begins with version 2, and version 1 serves here"),
    }
    reason, words = said[damage]
    async with serving(learner, models) as (engine, loader):
        await loader.load(learner.publish(1))
        if damage == "base of another learner":  # one that went on from a checkpoint, and trained on other groups
            learner.publish(1, share=0.1)
        if damage == "a version without one":
            learner.publish(2, whole=True)
        manifest = learner.publish(3 if damage == "a version without one" else 2, share=0.15)
        assert manifest.HasField("delta")
        file = learner.root / manifest.folder / delta.FOLDER / "model.safetensors"
        data = file.read_bytes()
        if damage == "flipped":
            file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        elif damage == "cut off":
            file.write_bytes(data[:-1])
        elif damage == "gone":
            file.unlink()
        before = refused(reason)
        with caplog.at_level(logging.WARNING):
            await loader.load(manifest)
        assert refused(reason) == before + 1
        assert f"version {manifest.version} is read whole: " in caplog.text
        assert words in caplog.text
        assert served(engine) == await whole(manifest, learner.root, models[0])
        following = learner.publish(manifest.version + 1, share=0.17)
        await loader.load(following)
        assert refused(reason) == before + 1  # the next one begins with what was read
        assert served(engine) == await whole(following, learner.root, models[0])


async def test_weights_that_are_refused_leave_what_later_changes_begin_with(
    learner: Learner, models: tuple[Path, Path]
) -> None:
    async with serving(learner, models) as (engine, loader):
        await loader.load(learner.publish(1))
        old, before = served(engine), moved("delta")
        bad = publish_nan(learner.root, 2)
        assert bad.HasField("delta")
        with pytest.raises(InvalidInputError, match="NaN"):
            await loader.load(bad)
        assert served(engine) == old
        good = learner.publish(2)
        await loader.load(good)
        assert moved("delta") == before + good.delta.files[0].size_bytes
        assert served(engine) == await whole(good, learner.root, models[0])


def publish_nan(root: Path, version: int) -> pb.WeightsManifest:
    """The version before with one entry that is not a number."""
    data = bytearray((root / published.folder_name(version - 1) / "model.safetensors").read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"

    def write(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(data)

    return published.publish(root, version, write, keep=9, base=version - 1)


async def test_changes_go_from_training_to_replicas_through_restarts_of_both(run: Run, tmp_path: Path) -> None:
    """bfloat16 at the learning rate of large models: every fourth version is read whole, and by replicas that begin."""
    model = save_model(tmp_path / "model")
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).save_pretrained(model)
    chosen = tables(tmp_path, model, steps=6, optimizer__learning_rate=1e-6, checkpoints__every=2)
    table = RunSettings(**{**chosen.run.model_dump(), "weights_full_every": 4, "max_staleness": 6})
    settings = chosen.model_copy(update={"run": table})
    groups = [message(group, i) for i, group in enumerate(random_groups(load(model), 6 * GROUPS, SAMPLES))]
    root = settings.run.weights_root

    async def to(version: int, *engines: TorchEngine) -> None:
        await until(lambda: all(engine.version == version for engine in engines))

    async with torch_engine(model) as first, torch_engine(model) as second:
        follow = WeightsLoader(first, root).follow
        async with background(follow(run.newest_weights, 0.001)):
            await put(run, Stream.SCORED, *groups[: 3 * GROUPS])
            async with Learning(settings, run):
                await to(3, first)
            restarted = WeightsLoader(second, root)
            assert await restarted.restore(await run.announced_weights()) is None
            assert served(first) == served(second)
            before = moved("delta")
            async with background(restarted.follow(run.newest_weights, 0.001)):
                await put(run, Stream.SCORED, *groups[3 * GROUPS :])
                async with Learning(settings, run):
                    await to(6, first, second)
        manifests = [published.read_manifest(root / published.folder_name(version)) for version in (4, 5, 6)]
        assert [manifest.HasField("delta") for manifest in manifests] == [False, True, True]
        assert manifests[-1].delta.files[0].size_bytes < 0.1 * manifests[-1].files[0].size_bytes
        assert moved("delta") > before
        assert served(first) == served(second) == await whole(manifests[-1], root, model)


def test_a_machine_without_room_for_two_copies_is_refused_with_both_numbers(
    models: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    source.check_memory(models[0])
    available = psutil.virtual_memory()._replace(available=1000)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: available)
    with pytest.raises(PreconditionError, match=r"keeps two copies of the weights in memory, 0\.0 GB, and 0\.0 GB are"):
        source.check_memory(models[0])
