"""What changed goes to replicas that have the version before, and all of it to others, over the network and Redis."""

from pathlib import Path

import pytest

from shared.streams.run import Run
from tests.support.generation_worker import metric
from tests.support.models import save_model
from tests.support.replicas import Learner, replica, serves


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def sent_bytes(kind: str) -> float:
    return metric("weights_bytes_total", kind=kind)


async def test_changes_go_to_replicas_that_have_the_version_before_and_all_to_everybody_every_so_often(
    run: Run, tmp_path: Path, model: Path
) -> None:
    learner = Learner(run, tmp_path, model, full_every=4)
    async with replica(run, "one", model, tmp_path) as one, replica(run, "two", model, tmp_path) as two:
        whole = sum(tensor.nbytes for tensor in learner.weights.tensors.values())
        for version in range(1, 6):
            full, changes = sent_bytes("broadcast"), sent_bytes("broadcast_delta")
            await learner.publish(version)
            await serves(one, version)
            await serves(two, version)
            assert learner.is_served_by(one)
            assert learner.is_served_by(two)
            if version == 4:
                assert sent_bytes("broadcast") - full == 2 * whole
            else:
                assert sent_bytes("broadcast") == full
                assert 0 < sent_bytes("broadcast_delta") - changes < 0.2 * whole


async def test_a_replica_that_missed_a_version_gets_all_of_the_next_and_then_changes_again(
    run: Run, tmp_path: Path, model: Path
) -> None:
    learner = Learner(run, tmp_path, model, full_every=100)
    async with replica(run, "one", model, tmp_path) as one:
        await learner.publish(1)
        await serves(one, 1)
        async with replica(run, "late", model, tmp_path) as late:
            for version, kind in ((2, "broadcast"), (3, "broadcast_delta")):
                before = sent_bytes(kind)
                await learner.publish(version)
                await serves(one, version)
                await serves(late, version)
                assert sent_bytes(kind) > before
                assert learner.is_served_by(one)
                assert learner.is_served_by(late)


@pytest.mark.parametrize("damage", ["weights of another learner", "a version that the learner takes for another"])
async def test_a_replica_with_another_base_says_so_and_gets_all_of_the_version(
    run: Run, tmp_path: Path, model: Path, damage: str
) -> None:
    learner = Learner(run, tmp_path, model, full_every=100)
    async with replica(run, "one", model, tmp_path) as one, replica(run, "two", model, tmp_path) as two:
        await learner.publish(1)
        await serves(one, 1)
        await serves(two, 1)
        await learner.announcer.settled()
        reason = "corruptdata" if damage == "weights of another learner" else "base"
        before = metric("weights_deltas_refused_total", reason=reason)
        if reason == "corruptdata":
            two._batch.policy.model.get_input_embeddings().weight.data[3] += 1
        else:
            two._version = 0
        await learner.publish(2)
        await serves(one, 2)
        await serves(two, 2)
        assert metric("weights_deltas_refused_total", reason=reason) == before + 1
        assert learner.is_served_by(one)
        assert learner.is_served_by(two)
