"""From the learner's announcements to replicas of generation that see none of its files, on a real Redis."""

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from routershift.v1 import trajectory_pb2 as pb
from services.generation.service import GenerationService
from services.generation.settings import GenerationSettings
from services.generation.settings import Settings as GenerationTables
from shared.errors import NotFoundError
from shared.process.service import background
from shared.streams import run as run_module
from shared.streams.run import Replica, Run
from shared.weights.buckets import Outflow
from tests.support.entries import until
from tests.support.generation_worker import manifest, refused
from tests.support.models import MAX_MODEL_LEN, save_model
from tests.support.replicas import Learner, replica, run_settings, serves


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def transfers(outcome: str) -> float:
    return REGISTRY.get_sample_value("routershift_learner_transfers_total", {"outcome": outcome}) or 0.0


async def sent(versions: float) -> bool:
    return transfers("ok") == versions


async def test_replicas_come_and_go(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    await run.register_replica("a-1", 1, 0)
    await run.register_replica("b-1", 2, 7)
    await run.register_replica("a-1", 1, 3)
    assert await run.replicas() == {"a-1": Replica(1, 3), "b-1": Replica(2, 7)}
    await run.remove_replica("b-1")
    monkeypatch.setattr(run_module, "_REPLICA_MILLISECONDS", 1)
    await run.register_replica("a-1", 1, 4)

    async def is_silent() -> bool:
        return await run.replicas() == {}

    await until(is_silent)


async def test_versions_reach_every_replica_and_those_that_come_late(run: Run, tmp_path: Path, model: Path) -> None:
    learner, ok = Learner(run, tmp_path / "learner", model), transfers("ok")
    async with replica(run, "one", model, tmp_path) as one, replica(run, "two", model, tmp_path) as two:
        for version in (1, 2):
            await learner.publish(version)
            await serves(one, version)
            await serves(two, version)
        async with replica(run, "three", model, tmp_path) as three:
            assert three.version == 0
            await learner.announcer.remind()
            await serves(three, 2)
        await until(lambda: sent(ok + 3))
        await run.register_replica("one", 1, 0)  # as it says until it has loaded what came
        await learner.announcer.remind()
    newest = await run.newest_weights()
    assert newest is not None
    assert set(newest.broadcast.first_ranks) == {"three"}, "whom the version has reached is not asked to come again"


async def test_a_replica_that_is_dead_delays_nobody_for_longer_than_a_version(
    run: Run, tmp_path: Path, model: Path
) -> None:
    learner = Learner(run, tmp_path / "learner", model, transfer__timeout_seconds=1000.0)
    failed, missing = transfers("failed"), refused("notfound")
    await run.register_replica("dead", 1, 0)
    async with replica(run, "alive", model, tmp_path) as alive:
        await learner.publish(1)
        await run.remove_replica("dead")
        async with asyncio.timeout(60):
            await learner.publish(2)  # which calls the first rendezvous off
        await serves(alive, 2)
    assert transfers("failed") == failed + 1
    assert refused("notfound") - missing in (0, 1)  # of version 1, where it had come to that rendezvous


async def test_a_transfer_that_failed_is_made_up_for_while_nothing_else_is_to_do(
    run: Run, tmp_path: Path, model: Path
) -> None:
    learner, missing = Learner(run, tmp_path / "learner", model, transfer__timeout_seconds=1.0), refused("notfound")
    await run.register_replica("dead", 1, 0)
    async with replica(run, "alive", model, tmp_path) as alive:
        await learner.publish(1)

        async def has_failed() -> bool:
            return refused("notfound") == missing + 1

        await until(has_failed)
        assert alive.version == 0
        await run.remove_replica("dead")

        async def is_reached() -> bool:
            await learner.announcer.remind()
            return alive.version == 1

        await until(is_reached)


async def test_a_learner_that_is_replaced_midway_is_followed_by_the_next(
    run: Run, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner, missing = Learner(run, tmp_path, model, transfer__timeout_seconds=1.0), refused("notfound")
    async with replica(run, "one", model, tmp_path) as one:
        with monkeypatch.context() as midway:

            def stops(*_: object) -> None:
                raise RuntimeError("killed")

            midway.setattr(Outflow, "write", stops)
            await learner.publish(1)
            await learner.announcer.settled()
        await until(partial(was_refused, missing + 1))
        assert one.version == 0
        following = Learner(run, tmp_path, model)  # which goes on from a checkpoint of version 1, and trains version 2
        for version in (1, 2):
            await following.publish(version)
            await serves(one, version)
            assert following.is_served_by(one)


async def was_refused(times: float) -> bool:
    return refused("notfound") == times


async def test_a_learner_that_cannot_be_reached_still_announces(run: Run, tmp_path: Path, model: Path) -> None:
    learner = Learner(run, tmp_path, model, transfer__host="192.0.2.1", transfer__timeout_seconds=0.2)
    failed = transfers("failed")
    await run.register_replica("one", 1, 0)
    await learner.publish(1)
    newest = await run.newest_weights()
    assert newest is not None
    assert (newest.version, newest.HasField("broadcast")) == (1, False)
    assert transfers("failed") == failed + 1


class TestStart:
    """A service that starts on announced weights."""

    def service(self, tmp_path: Path, model: Path, **run: Any) -> GenerationService:
        settings = run_settings(tmp_path, model).model_copy(update=run)
        table = GenerationSettings(engine="torch", max_model_len=MAX_MODEL_LEN)
        return GenerationService(GenerationTables(run=settings, generation=table))

    async def announced(self, run: Run, folder: Path, model: Path, *damaged: int) -> list[pb.WeightsManifest]:
        root = run_settings(folder, model).weights_root
        manifests = [manifest(root, version, model) for version in (1, 2, 3)]
        for each in manifests:
            file = root / each.folder / "model.safetensors"
            if each.version in damaged:
                file.write_bytes(file.read_bytes()[:-1])
            await run.announce(each)
        return manifests

    async def test_the_newest_that_is_whole_is_loaded(self, run: Run, tmp_path: Path, model: Path) -> None:
        manifests = await self.announced(run, tmp_path, model, 2, 3)
        assert await run.announced_weights() == manifests[::-1]
        before, service = refused("corruptdata"), self.service(tmp_path, model)
        try:
            await service.start(run)
            assert service._engine.version == 1
            assert refused("corruptdata") == before + 2
            assert service._room() > 0
        finally:
            await service.close()

    async def test_none_that_is_whole_is_an_error_where_weights_are_files(
        self, run: Run, tmp_path: Path, model: Path
    ) -> None:
        await self.announced(run, tmp_path, model)
        service = self.service(tmp_path / "elsewhere", model, weights_transfer="files")
        try:
            with pytest.raises(NotFoundError, match="of version 3 is missing"):
                await service.start(run)
        finally:
            await service.close()

    async def test_none_is_waited_for_where_the_learner_sends_it(self, run: Run, tmp_path: Path, model: Path) -> None:
        learner = Learner(run, tmp_path, model)
        for version in (1, 2, 3):
            await learner.publish(version)
        service, stop = self.service(tmp_path / "elsewhere", model), asyncio.Event()
        try:
            await service.start(run)
            assert (service._engine.version, service._room()) == (0, 0)
            async with background(service.work(stop)):

                async def is_sent() -> bool:
                    await learner.announcer.remind()
                    return service._engine.version == 3

                await until(is_sent)
                assert service._room() > 0
                stop.set()
        finally:
            await service.close()
