"""What follows a run: when it speaks, what it says, and when it gives up. A real Redis, and a clock by hand."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from services.cli import monitor
from services.cli.monitor import Monitor
from services.cli.recipe import Recipe
from shared.errors import DeadlineError
from shared.recipes import load
from shared.streams.consumer import End
from shared.streams.keys import Stream
from shared.streams.progress import Progress
from shared.streams.run import FINISHED, PAUSED, TRAINING, Run
from shared.tracking import records
from tests.support.runs import GROUP, end, move, prompt

Said = Callable[[], list[str]]
GROUPS_PER_STEP = 3
STEP = {"step": 1, "reward_mean": 0.1, "staleness_max": 0}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def strftime(self, form: str) -> str:
        return form


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(monitor, "time", clock)
    return clock


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return lambda: capsys.readouterr().err.splitlines()


def recipe(folder: Path, *flags: str) -> Recipe:
    run = ("model=none", "id=test", f"folder={folder}", f"groups_per_step={GROUPS_PER_STEP}")
    samples = f"rollout.n={GROUP}"
    return load(Recipe, None, {}, [*(f"run.{flag}" for flag in run), samples, *flags])


class Groups:
    """Prompts that are admitted, scored and dropped, or left where the learner finds them."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._next = 0

    async def scored(self, count: int) -> None:
        for _ in range(count):
            await self._run.admit(self._next, prompt(self._next), 1000)
            self._next += 1
        await move(self._run, Stream.PROMPTS, Stream.ROLLOUTS, count)
        await move(self._run, Stream.ROLLOUTS, Stream.SCORED, count)

    async def ended(self, count: int, how: End) -> None:
        await self.scored(count)
        await end(self._run, Stream.SCORED, count, how)


async def look(watch: Monitor, run: Run, clock: Clock, seconds: float) -> None:
    """As `run` does, every second or so."""
    for _ in range(int(seconds)):
        clock.now += 1.0
        await watch.update(run)


async def test_a_run_whose_groups_all_have_equal_rewards_says_so(
    run: Run, tmp_path: Path, clock: Clock, said: Said
) -> None:
    watch, groups = Monitor(recipe(tmp_path, "supervisor.progress_seconds=100")), Groups(run)
    await run.report_progress(Progress(phase=TRAINING, activity="waiting", collected=0))
    await look(watch, run, clock, 10)
    for _ in range(25):
        await groups.ended(2, End.dropped("zero_variance"))
        await look(watch, run, clock, 1)
    (line,) = [line for line in said() if "no step for" in line]
    assert "groups that ended since the last step had equal rewards for all their responses (zero variance)" in line
    assert "0 of the 3 groups of a step are there" in line
    with pytest.raises(DeadlineError, match=r"no progress towards a step for \d+ s: all \d+ groups .*zero variance"):
        await look(watch, run, clock, 200)
    assert len([line for line in said() if "no step for" in line]) == 2, "again after twice the time, and no oftener"


@pytest.mark.parametrize(
    ("how", "words"),
    [
        (End.dropped("stale"), "were too stale: raise run.max_staleness"),
        (End.dropped("aborted"), "were dropped (aborted)"),
    ],
)
async def test_any_other_reason_is_said_as_well(
    run: Run, tmp_path: Path, clock: Clock, said: Said, how: End, words: str
) -> None:
    watch, groups = Monitor(recipe(tmp_path)), Groups(run)
    await look(watch, run, clock, 3)
    for _ in range(20):
        await groups.ended(1, how)
        await look(watch, run, clock, 1)
    assert any(words in line for line in said())


async def test_several_reasons_and_dead_letters_are_counted(run: Run, tmp_path: Path, clock: Clock, said: Said) -> None:
    watch, groups = Monitor(recipe(tmp_path)), Groups(run)
    await look(watch, run, clock, 3)
    await groups.ended(4, End.dropped("zero_variance"))
    await groups.scored(1)
    reader = run.consumer(Stream.SCORED)
    (entry,) = await reader.read(1)
    await reader.bury(entry, "bad_trajectory", "for the test")
    await look(watch, run, clock, 20)
    (line,) = [line for line in said() if "no step for" in line]
    assert "all 5 groups that ended since the last step were lost: 4 had equal rewards" in line
    assert "1 went to the dead letters (bad_trajectory)" in line


async def test_what_a_run_that_has_finished_drops_is_no_news(
    run: Run, tmp_path: Path, clock: Clock, said: Said
) -> None:
    """Its last evaluation may take long."""
    watch = Monitor(recipe(tmp_path))
    await Groups(run).scored(30)
    await look(watch, run, clock, 3)
    await run.report_progress(Progress(phase=FINISHED))
    await end(run, Stream.SCORED, 30, End.dropped("run_finished"))
    await look(watch, run, clock, 60)
    assert said() == []


async def test_what_an_earlier_start_dropped_is_no_news(run: Run, tmp_path: Path, clock: Clock, said: Said) -> None:
    await Groups(run).ended(50, End.dropped("zero_variance"))
    await look(Monitor(recipe(tmp_path)), run, clock, 60)
    assert said() == []


async def test_steps_that_come_need_no_words(run: Run, tmp_path: Path, clock: Clock, said: Said) -> None:
    of = recipe(tmp_path)
    watch, groups = Monitor(of), Groups(run)
    for step in range(1, 6):
        await groups.ended(5, End.dropped("zero_variance"))
        await look(watch, run, clock, 10)
        records.append(of.run.path / records.LEARNER, {**STEP, "step": step})
    await look(watch, run, clock, 1)
    assert [line for line in said() if "no step" in line] == []


async def test_a_step_of_ten_minutes_is_progress_and_one_without_end_is_not(
    run: Run, tmp_path: Path, clock: Clock
) -> None:
    of = recipe(tmp_path, "supervisor.progress_seconds=60", "supervisor.step_seconds=3000")
    watch = Monitor(of)
    await run.report_progress(Progress(phase=TRAINING, activity="training", collected=0))
    await look(watch, run, clock, 600)
    with pytest.raises(DeadlineError, match=r"in one step for 3\d\d\d s; raise supervisor\.step_seconds"):
        await look(watch, run, clock, 2500)


async def test_what_comes_nearer_to_a_step_is_progress(run: Run, tmp_path: Path, clock: Clock) -> None:
    """An evaluation that goes on, groups that arrive, and a person who has paused the learner."""
    watch, groups = Monitor(recipe(tmp_path, "supervisor.progress_seconds=60")), Groups(run)
    for problems in range(5):
        await run.report_progress(Progress(evaluated_problems=problems))
        await look(watch, run, clock, 50)
    for _ in range(5):
        await groups.scored(1)
        await look(watch, run, clock, 50)
    await run.report_progress(Progress(phase=PAUSED))
    await look(watch, run, clock, 300)
    await run.report_progress(Progress(phase=TRAINING))
    with pytest.raises(DeadlineError, match=r"no progress towards a step for \d+ s; see .*logs, or raise supervisor"):
        await look(watch, run, clock, 100)


async def test_admitted_prompts_are_no_progress(run: Run, tmp_path: Path, clock: Clock) -> None:
    watch = Monitor(recipe(tmp_path, "supervisor.progress_seconds=60"))
    await look(watch, run, clock, 5)

    async def admit() -> None:
        for index in range(100):
            await run.admit(index, prompt(index), 1000, {"turns": index + 1, "choices": {"taken": index + 1}})
            await look(watch, run, clock, 1)

    with pytest.raises(DeadlineError, match=r"supervisor\.progress_seconds"):
        await admit()


async def test_an_evaluation_says_who_sampled(run: Run, tmp_path: Path, clock: Clock, said: Said) -> None:
    of = recipe(tmp_path)
    record = {
        "set": "sums", "main": True, "version": 20, "oldest_version": 20, "newest_version": 23,
        "problems": 2, "samples": 4, "accuracy": 0.5, "greedy_accuracy": 0.5, "pass_at_k": {"2": 0.75},
    }  # fmt: skip
    records.append(of.run.path / records.EVALUATIONS, record)
    records.append(
        of.run.path / records.EVALUATIONS, record | {"version": 30, "oldest_version": 30, "newest_version": 30}
    )
    await Monitor(of).update(run)
    first, second = said()
    assert first.endswith("on 2 problems x 2, sampled by versions 20 to 23")
    assert second.endswith("on 2 problems x 2")


async def test_a_run_that_goes_on_says_where_and_repeats_nothing(
    run: Run, tmp_path: Path, clock: Clock, said: Said
) -> None:
    of = recipe(tmp_path, "run.steps=100")
    for step in range(1, 21):
        records.append(of.run.path / records.LEARNER, {**STEP, "step": step})
    watch = Monitor(of, since=datetime.now(UTC) + timedelta(milliseconds=1))  # records have milliseconds
    await look(watch, run, clock, 3)
    assert said() == []
    await run.report_progress(Progress(step=20, phase=TRAINING))
    await look(watch, run, clock, 3)
    (line,) = said()
    assert line.endswith("going on with step 21 of 100: 20 were done before")
    await asyncio.sleep(0.01)
    records.append(of.run.path / records.LEARNER, {**STEP, "step": 21})
    await look(watch, run, clock, 3)
    (line,) = said()
    assert "step   21/100" in line


async def test_a_step_taken_before_the_first_look_is_not_one_that_was_done_before(
    run: Run, tmp_path: Path, said: Said
) -> None:
    of = recipe(tmp_path, "run.steps=100")
    watch = Monitor(of, since=datetime.now(UTC) - timedelta(seconds=1))
    records.append(of.run.path / records.LEARNER, {**STEP, "step": 31})
    await run.report_progress(Progress(step=31, phase=TRAINING))
    await watch.update(run)
    assert said()[0].endswith("going on with step 31 of 100: 30 were done before")


async def test_a_run_that_was_done_before_says_so(run: Run, tmp_path: Path, said: Said) -> None:
    await run.report_progress(Progress(step=100, phase="finished"))
    await Monitor(recipe(tmp_path, "run.steps=100"), since=datetime.now(UTC)).update(run)
    assert "all 100 steps were done before" in said()[0]


async def test_the_line_has_what_is_left_speed_losses_and_what_happens(run: Run, tmp_path: Path, clock: Clock) -> None:
    of, shown = recipe(tmp_path, "run.steps=100"), list[str]()
    watch, groups = Monitor(of, show=shown.append), Groups(run)
    await watch.update(run)
    assert shown[-1] == "waiting for the learner"
    await run.report_progress(Progress(step=0, phase=TRAINING, collected=1, evaluating_version=0, evaluated_problems=9))
    await look(watch, run, clock, 1)
    assert shown[-1] == "step 0/100, 1 of 3 groups for the next, evaluating version 0: 9 problems"
    await groups.ended(9, End.trained(1))
    await groups.ended(3, End.dropped("stale"))
    records.append(of.run.path / records.LEARNER, {**STEP, "tokens": 500.0, "seconds": {"train": 2.0}})
    await run.report_progress(Progress(step=1, activity="training", evaluated_version=0))
    await look(watch, run, clock, 3)
    assert shown[-1] == "step 1/100, 3 min left, 250 tokens/s, 25% dropped, training"


async def test_much_that_is_dropped_is_said_although_steps_come(
    run: Run, tmp_path: Path, clock: Clock, said: Said
) -> None:
    of = recipe(tmp_path)
    watch, groups = Monitor(of), Groups(run)
    records.append(of.run.path / records.LEARNER, STEP)
    await look(watch, run, clock, 3)
    await groups.ended(3, End.trained(1))
    await groups.ended(9, End.dropped("zero_variance"))
    await look(watch, run, clock, 3)
    (line,) = [line for line in said() if "dropped:" in line]
    assert "75% of the last 48 trajectories were dropped: 36 had equal rewards" in line


async def test_steps_that_take_long_get_a_line_each(run: Run, tmp_path: Path, clock: Clock, said: Said) -> None:
    of = recipe(tmp_path)
    watch = Monitor(of)
    for step in (2, 3, 4):
        records.append(of.run.path / records.LEARNER, {**STEP, "step": step})
        await look(watch, run, clock, 70)
    assert len([line for line in said() if "reward" in line]) == 3
