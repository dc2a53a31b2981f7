"""Which problems are admitted, on a real Redis: killed and resumed, and with what is known of how they are solved."""

import asyncio
import contextlib
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from services.curriculum.selection import Selector
from services.curriculum.settings import SelectionSettings
from services.curriculum.worker import CurriculumWorker
from shared.errors import InvalidInputError
from shared.streams.run import Run
from tests.support.feeding import ROWS, Rows, end_prompts, tables


@contextlib.asynccontextmanager
async def feeding(run: Run, folder: Path, selection: SelectionSettings, rows: Rows) -> AsyncIterator[None]:
    worker = CurriculumWorker(tables(run.keys.run, folder, selection), rows, run)
    task = asyncio.create_task(worker.feed())
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def selector(run: Run, rows: Rows | None = None, **selection: object) -> Selector:
    return Selector(rows or Rows(), SelectionSettings.model_validate(selection), 0, run.solve_rates)


async def select(chosen: Selector, count: int, state: object = None) -> list[str]:
    """The rows of the next prompts."""
    await chosen.open()
    found = []
    for _ in range(count):
        selected = await chosen.select(state)  # type: ignore[arg-type]
        state = selected.state
        found.append(selected.problem.id)
    return found


@pytest.mark.parametrize("strategy", ["uniform", "dynamic"])
async def test_a_curriculum_that_is_killed_reads_no_row_twice_and_skips_none(
    run: Run, redis_url: str, tmp_path: Path, strategy: str
) -> None:
    """Killed with SIGKILL at moments that nobody chose. Nothing is known of any row, so dynamic takes all."""
    wanted = 3 * ROWS
    prompts: list[pb.Prompt] = []
    moments = random.Random(strategy)
    kills = 0
    while len(prompts) < wanted:
        program = ("-m", "tests.support.feeding", redis_url, run.keys.run, str(tmp_path), strategy)
        process = await asyncio.create_subprocess_exec(sys.executable, *program)
        until = min(wanted, len(prompts) + moments.randint(20, 40))
        prompts += await end_prompts(run, until - len(prompts))
        await asyncio.sleep(moments.random() / 50)
        assert process.returncode is None
        process.kill()
        await process.wait()
        kills += 1
    assert kills >= 4
    expected = [Rows().train(turn) for turn in range(wanted)]
    assert [p.problem_id for p in prompts] == [problem.id for problem in expected]
    assert [p.text for p in prompts] == [problem.prompt for problem in expected]
    assert [p.prompt_id for p in prompts] == [f"{i:08d}" for i in range(wanted)]
    assert Counter(p.problem_id for p in prompts) == {f"row-{row}": 3 for row in range(ROWS)}


async def test_a_redis_that_lost_writes_gets_the_rows_of_these_prompts_again(
    run: Run, redis: Redis, tmp_path: Path
) -> None:
    """Index and place in the order go back together, in whatever strategy."""
    rows = Rows(priorities=[0.5] * ROWS)
    async with feeding(run, tmp_path, SelectionSettings(strategy="priority"), rows):
        await end_prompts(run, 10)
        await asyncio.sleep(0.05)  # all tickets are out: nothing is admitted until one comes back
        saved: Any = await redis.hgetall(run.keys.progress)
        before = await end_prompts(run, 20)
        await redis.hset(run.keys.progress, mapping=saved)
        first = int(saved[b"prompts"])
        again = {p.prompt_id: p.problem_id for p in await end_prompts(run, 30)}
    lost = {p.prompt_id: p.problem_id for p in before if int(p.prompt_id) >= first}
    assert lost
    assert lost.items() <= again.items()


async def test_dynamic_sets_aside_what_all_or_none_solve_and_it_comes_back(run: Run) -> None:
    chosen = selector(run, strategy="dynamic", retry=0.25)
    await chosen.open()
    for row in range(ROWS):
        solved = {0: 0.0, 1: 1.0}.get(row % 5, 0.5)
        await run.solve_rates.record(f"row-{row}", solved, equal=row % 5 in (0, 1))
    epochs = 40
    state, choices, taken = None, Counter[str](), Counter[str]()
    while state is None or state["turns"] < epochs * ROWS:
        selected = await chosen.select(state)
        choices.update(selected.choices)
        state = selected.state
        taken[selected.problem.id] += 1
    mixed = [taken[f"row-{row}"] for row in range(ROWS) if row % 5 >= 2]
    aside = [taken[f"row-{row}"] for row in range(ROWS) if row % 5 < 2]
    assert set(mixed) <= {epochs, epochs + 1}
    assert 0.8 < sum(aside) / (len(aside) * epochs * 0.25) < 1.2
    assert all(0 < count < epochs for count in aside)
    assert choices["solved"] + choices["unsolved"] + choices["taken"] == state["turns"]
    assert dict(choices) == state["choices"]
    # The policy has changed: what taught nothing does so now.
    for row in range(ROWS):
        await run.solve_rates.record(f"row-{row}", 0.5, equal=False)
    assert len(set(await select(chosen, ROWS, {"turns": 0, "choices": {}}))) == ROWS


async def test_difficulty_takes_a_window_of_the_running_solve_rate(run: Run) -> None:
    chosen = selector(run, strategy="difficulty", low=0.2, high=0.8, retry=0.001)
    await chosen.open()
    for row in range(ROWS):
        for _ in range(3):
            await run.solve_rates.record(f"row-{row}", row / (ROWS - 1), equal=False)
    rates = [known.rate for known in await run.solve_rates.read([f"row-{row}" for row in range(ROWS)]) if known]
    inside = {f"row-{row}" for row, rate in enumerate(rates) if 0.2 <= rate <= 0.8}
    assert 0 < len(inside) < ROWS
    assert set(await select(chosen, 2 * len(inside))) - inside == set()
    # A restart knows what was known before.
    assert set(await select(selector(run, strategy="difficulty", low=0.9, high=1.0, retry=0.001), 5)) <= {
        f"row-{row}" for row, rate in enumerate(rates) if rate >= 0.9
    }


async def test_priority_takes_a_row_in_the_share_of_its_turns(run: Run) -> None:
    priorities = [0.0, 0.25, 1.0] * 10
    rows, epochs = Rows(len(priorities), priorities), 60
    chosen, state, taken = selector(run, rows, strategy="priority"), None, Counter[str]()
    while state is None or state["turns"] < epochs * len(priorities):
        selected = await chosen.select(state)
        state = selected.state
        taken[selected.problem.id] += 1
    by_priority = {p: sum(taken[f"row-{row}"] for row in range(30) if priorities[row] == p) for p in set(priorities)}
    assert by_priority[0.0] == 0
    assert 0.8 < by_priority[0.25] / (10 * epochs * 0.25) < 1.2
    assert by_priority[1.0] in (10 * epochs, 10 * epochs + 1)


@pytest.mark.parametrize(
    ("priorities", "text"),
    [
        ([0.0] * ROWS, "strategy 'priority' has passed over 100000 problems in a row.*takes none"),
        ([1.5] * ROWS, r"priority of problem 'row-\d+' is 1.5; expected .* 0 to 1"),
        ([float("nan")] * ROWS, "is nan; expected"),
    ],
)
async def test_priorities_that_cannot_be_are_refused(run: Run, priorities: list[float], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        await selector(run, Rows(priorities=priorities), strategy="priority").select(None)


async def test_choices_are_counted_and_stand_in_the_progress(run: Run, tmp_path: Path) -> None:
    def counted(choice: str) -> float:
        return REGISTRY.get_sample_value("routershift_curriculum_choices_total", {"choice": choice}) or 0.0

    before = {choice: counted(choice) for choice in ("taken", "priority")}
    rows = Rows(priorities=[0.5] * ROWS)
    async with feeding(run, tmp_path, SelectionSettings(strategy="priority"), rows):
        await end_prompts(run, 40)
    found = (await run.progress()).selection
    assert found is not None
    assert found["strategy"] == "priority"
    assert found["choices"]["taken"] >= 40
    assert found["turns"] == sum(found["choices"].values())
    gained = {choice: counted(choice) - before[choice] for choice in before}
    assert gained["taken"] >= 40
    assert gained["priority"] >= 1


async def test_no_more_problems_are_remembered_than_asked_for(run: Run) -> None:
    rates = run.solve_rates
    await rates.record("early", 1.0, equal=True)
    assert await rates.read(["early"]) == [None]  # nobody had asked
    await rates.open(2)
    for problem in ("one", "two", "three", "one", ""):
        await rates.record(problem, 1.0, equal=True)
    known = await rates.read(["one", "two", "three", ""])
    assert [each and each.groups for each in known] == [2, 1, None, None]
    long = "x" * 10_000
    await rates.open(3)
    await rates.record(long, 0.25, equal=False)
    (kept,) = await rates.read([long])
    assert kept is not None
    assert (kept.rate, kept.equal) == (0.25, False)


async def test_the_running_rate_follows_the_policy(run: Run) -> None:
    await run.solve_rates.open(10)
    rates = []
    for share in [0.0, 1.0, *[1.0] * 20]:
        await run.solve_rates.record("row", share, equal=True)
        (known,) = await run.solve_rates.read(["row"])
        assert known is not None
        rates.append(known.rate)
    assert rates[:3] == pytest.approx([0.0, 0.5, 2 / 3])  # a mean at first
    assert rates == sorted(rates)
    assert rates[-1] > 0.99  # then the old ones are forgotten
