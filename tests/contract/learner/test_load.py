"""The learner under load: the event loop stays free, memory is let go, and a restart blames no group."""

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from services.learner import collector
from services.learner.data.batch import Group
from services.learner.data.messages import Scored, decode_group
from shared.payloads.bulk import Bulk
from shared.settings import StreamSettings
from shared.streams.consumer import Entry
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.entries import SAMPLES, message, put, until
from tests.support.learning import GROUPS, Learning, no_tickets, nothing_in_flight, tables
from tests.support.models import save_model
from tests.support.rollouts import load, random_groups


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def groups(model: Path) -> list[Group]:
    return random_groups(load(model), groups=GROUPS, samples=SAMPLES)


async def test_the_event_loop_runs_while_a_group_is_decoded(
    run: Run, tmp_path: Path, model: Path, groups: list[Group], monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    ticked: list[bool] = []

    def decode(entry: Entry, bulk: Bulk | None) -> Scored:
        tick = threading.Event()
        loop.call_soon_threadsafe(tick.set)
        ticked.append(tick.wait(10))
        return decode_group(entry, bulk)

    monkeypatch.setattr(collector, "decode_group", decode)
    await put(run, Stream.SCORED, *(message(group, i) for i, group in enumerate(groups)))
    async with Learning(tables(tmp_path, model, steps=1), run):
        await until(lambda: nothing_in_flight(run))
    assert ticked == [True] * GROUPS


def killed(*_: Any) -> Any:
    """Ends the loop as a kill would: nothing is settled."""
    raise MemoryError


@pytest.mark.parametrize("where", ["train_step", "export_weights"])
async def test_a_learner_that_is_killed_again_and_again_makes_no_dead_letters(
    where: str, run: Run, tmp_path: Path, model: Path, groups: list[Group], stream_settings: StreamSettings
) -> None:
    settings = tables(tmp_path, model, steps=1)
    await put(run, Stream.SCORED, *(message(group, i) for i, group in enumerate(groups)))
    for _ in range(2 * stream_settings.max_deliveries):
        learning = Learning(settings, run)
        await learning.worker.start()
        setattr(learning.trainer, where, killed)
        with pytest.raises(MemoryError):
            await learning.worker.run(learning.stop)
    async with Learning(settings, run):
        await until(lambda: nothing_in_flight(run))
    ledger = await run.ledger()
    assert (ledger.trained, ledger.dead) == (GROUPS * SAMPLES, {})


async def test_payloads_of_trained_groups_are_let_go_before_the_checkpoint(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    payloads: list[bytes] = []
    await put(run, Stream.SCORED, *(message(group, i) for i, group in enumerate(groups)))
    learning = Learning(tables(tmp_path, model, steps=2, checkpoints__every=100), run)
    read = learning.consumer.read

    async def remember(*args: Any, **options: Any) -> list[Entry]:
        entries = await read(*args, **options)
        payloads.extend(entry.payload for entry in entries)
        return entries

    learning.consumer.read = remember  # type: ignore[method-assign]
    async with learning:
        await until(lambda: no_tickets(run))
        await until(lambda: _is_step(learning, 1))
        assert (await run.backlog())[Stream.SCORED].entries == GROUPS  # they wait for the checkpoint
        assert len(payloads) == GROUPS

        async def let_go() -> bool:
            return all(sys.getrefcount(payloads[i]) == 2 for i in range(GROUPS))  # the list's, and the argument's

        await until(let_go, 10)


async def _is_step(learning: Learning, step: int) -> bool:
    return learning.worker.status().step == step
