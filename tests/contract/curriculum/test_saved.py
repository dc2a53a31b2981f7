"""What a checkpoint carries of the curriculum comes back into a Redis that knows nothing of the run."""

import json
from collections import Counter
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.curriculum.selection import Selector
from services.curriculum.settings import SelectionSettings
from shared.settings import StreamSettings
from shared.streams.progress import Progress
from shared.streams.run import Run
from shared.streams.saved import FILE, Saved, newest, restore_lost
from tests.support.feeding import ROWS, Rows
from tests.support.runs import prompt

PROGRESS = Progress(
    prompts=70, selection={"turns": 90, "strategy": "dynamic", "choices": {"taken": 70}}, evaluated_version=40,
    best_version=20, best_accuracy=0.5, accuracy=0.4, held_out={"a": {"version": 40}},
)  # fmt: skip


async def judged(run: Run) -> None:
    await run.solve_rates.open(10_000)
    for row in range(ROWS):
        await run.solve_rates.record(f"row-{row}", 1.0 if row % 2 else 0.5, equal=row % 2 == 1)


def keep(root: Path, step: int, saved: Saved) -> Path:
    folder = root / f"step-{step:08d}-0000"
    folder.mkdir(parents=True)
    (folder / FILE).write_text(saved.encode())
    return folder


@pytest.fixture
async def other(redis: Redis, run: Run, stream_settings: StreamSettings) -> Run:
    """A run that Redis knows nothing of."""
    made = Run(redis, f"{run.keys.run}-other", stream_settings)
    await made.open()
    return made


async def test_it_goes_on_with_prompts_evaluations_and_solve_rates(run: Run, other: Run, tmp_path: Path) -> None:
    await judged(run)
    await run.report_progress(PROGRESS)
    folder = keep(tmp_path, 40, await Saved.collect(run, 40))
    keep(tmp_path, 20, Saved(20, Progress(prompts=1), {}))
    assert await restore_lost(other, tmp_path) == folder
    assert await other.progress() == PROGRESS
    names = [f"row-{row}" for row in range(ROWS)]
    assert await other.solve_rates.read(names) == await run.solve_rates.read(names)
    selector = Selector(Rows(), SelectionSettings(strategy="dynamic", retry=0.001), 0, other.solve_rates)
    await selector.open()
    state, taken = PROGRESS.selection, Counter[bool]()
    for _ in range(ROWS):
        selected = await selector.select(state)
        state = selected.state
        taken[int(selected.problem.id.removeprefix("row-")) % 2 == 1] += 1
    assert taken[True] < taken[False] / 10  # what all solve is set aside at once


async def test_what_redis_knows_is_left_as_it_is(run: Run, other: Run, tmp_path: Path) -> None:
    await run.report_progress(PROGRESS)
    keep(tmp_path, 40, await Saved.collect(run, 40))
    await other.admit(0, prompt(0), 4)
    assert await restore_lost(other, tmp_path) is None
    assert (await other.progress()).prompts == 1
    assert (await other.progress()).evaluated_version is None


async def test_a_restore_that_was_cut_short_is_made_again(run: Run, other: Run, tmp_path: Path) -> None:
    await judged(run)
    await run.report_progress(PROGRESS)
    keep(tmp_path, 40, await Saved.collect(run, 40))
    await other.solve_rates.restore({"row-0": "9 0.125000 0"})
    assert await restore_lost(other, tmp_path)
    assert await other.solve_rates.read(["row-0"]) == await run.solve_rates.read(["row-0"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 1}', '{"step": 1, "progress": [], "solve_rates": {}}'])
async def test_an_older_one_stands_in_for_what_cannot_be_read(other: Run, tmp_path: Path, text: str) -> None:
    older = keep(tmp_path, 20, Saved(20, Progress(prompts=5), {"row-1": "1 0.500000 0"}))
    torn = tmp_path / "step-00000040-0000"
    torn.mkdir()
    (torn / FILE).write_text(text)
    (tmp_path / "step-00000060-0000").mkdir()  # of a version that carried nothing
    assert await restore_lost(other, tmp_path) == older
    assert (await other.progress()).prompts == 5


async def test_without_a_checkpoint_a_run_begins_as_ever(other: Run, tmp_path: Path) -> None:
    assert newest(tmp_path / "checkpoints") is None
    assert await restore_lost(other, tmp_path / "checkpoints") is None
    assert await other.progress() == Progress()


async def test_it_is_plain_json(run: Run) -> None:
    await judged(run)
    found = json.loads((await Saved.collect(run, 3)).encode())
    assert found["step"] == 3
    assert found["solve_rates"]["row-1"] == "1 1.000000 1"
    assert "" not in found["solve_rates"]
