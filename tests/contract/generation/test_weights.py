"""New weights by the learner's announcements: the newest is taken, and what cannot be taken is counted."""

from pathlib import Path

import pytest

from routershift.v1 import trajectory_pb2 as pb
from services.generation.engines.base import EngineSampling
from services.generation.weights.loader import WeightsLoader
from shared.process.service import background
from shared.streams.run import Run
from shared.weights import published
from tests.support.generation_worker import manifest, metric, refused, torch_engine, until
from tests.support.models import save_model


async def test_versions_that_come_during_an_update_are_skipped_for_the_newest(run: Run, tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    root = tmp_path / "weights"
    announced = {version: manifest(root, version, model) for version in (1, 2, 3)}
    await run.announce(announced[1])
    taken: list[int] = []
    timed = "weights_update_seconds_count", "weights_pause_seconds_count"
    before = [metric(name) for name in timed]
    async with torch_engine(model) as engine:
        loader = WeightsLoader(engine, root)

        async def newest() -> pb.WeightsManifest | None:
            found = await run.newest_weights()
            if found is not None and found.version == 1:
                await run.announce(announced[2])
                await run.announce(announced[3])
            taken.append(engine.version)
            return found

        async with background(loader.follow(newest, 0.001)):
            await until(lambda: metric("weights_version") == 3)
    assert 1 in taken
    assert 2 not in taken
    assert [metric(name) for name in timed] == [value + 2 for value in before]


@pytest.mark.parametrize("damage", ["truncated", "other architecture", "gone", "gone once it was verified"])
async def test_weights_that_cannot_be_taken_are_counted_and_the_old_ones_serve_whole(
    run: Run, tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, other = save_model(tmp_path / "a"), save_model(tmp_path / "b", seed=1, hidden_size=64)
    root = tmp_path / "weights"
    bad = manifest(root, 1, other if damage == "other architecture" else model)
    file = root / bad.folder / "model.safetensors"
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:-1])
    elif damage == "gone":
        file.unlink()
    elif damage == "gone once it was verified":  # as where a learner publishes so fast that it is not kept
        verify = published.verify

        def verify_and_lose(folder: Path, found: pb.WeightsManifest) -> list[Path]:
            paths = verify(folder, found)
            if found.version == 1:
                file.unlink()
            return paths

        monkeypatch.setattr(published, "verify", verify_and_lose)
    reason = {"truncated": "corruptdata", "other architecture": "invalidinput"}.get(damage, "notfound")
    before = refused(reason)
    await run.announce(bad)
    async with torch_engine(model) as engine:
        loader = WeightsLoader(engine, root)
        sampling = EngineSampling(1, 0.0, 1.0, 0, 20, None)
        (old,) = await engine.generate([3, 4], sampling)
        assert loader.refused == -1
        async with background(loader.follow(run.newest_weights, 0.001)):
            await until(lambda: refused(reason) == before + 1)
            assert loader.refused == 1
            (still,) = await engine.generate([3, 4], sampling)
            assert engine.version == 0
            assert still.logprobs.tolist() == old.logprobs.tolist()
            await run.announce(manifest(root, 2, model))  # the next one is taken as ever
            await until(lambda: engine.version == 2)
        assert refused(reason) == before + 1
