"""A run in words, by a real Redis."""

import dataclasses
from pathlib import Path

import pytest

from services.cli.attached import Attached
from services.cli.live.look import Look, look
from services.cli.live.words import duration, rows, text
from shared.streams.keys import Stream
from shared.streams.progress import Progress
from shared.streams.run import PAUSED, TRAINING, Run
from shared.tracking import records
from tests.support.runs import a_run_of_every_kind, move, prompt

STEP = {
    "step": 7, "trajectories": 4, "reward_mean": 0.25, "train_accuracy": 0.5, "staleness_mean": 1.5, "staleness_max": 2,
    "gamma_mean": 0.99, "gamma_p10": None, "tokens": 100.0, "seconds": {"wait": 1.0, "train": 1.0},
}  # fmt: skip


async def looked(run: Run, folder: Path | None, live: bool = True) -> Look:
    return await look(Attached(run._redis, run, folder, live))


def said(found: Look, before: Look | None = None) -> dict[str, str]:
    return {row.label: row.text for row in rows(found, before)}


async def test_the_flow_the_training_and_what_was_lost(run: Run, tmp_path: Path) -> None:
    await a_run_of_every_kind(run)
    await run.report_progress(Progress(step=7, version=7, total_steps=100, phase=TRAINING, activity="waiting"))
    await run.report_progress(Progress(collected=1))
    records.append(tmp_path / records.LEARNER, STEP)
    shown = said(await looked(run, tmp_path))
    assert shown["run"] == f"{run.keys.run}: training"
    assert shown["step"] == "7 of 100, version 7, 3 min left, 2 s each"
    for stream, reader in (("prompts", "generation"), ("rollouts", "reward"), ("scored", "learner")):
        assert shown[stream].split()[:2] == ["1", "groups"]
        assert shown[stream].endswith(f"-> {reader}")
    assert "1 groups for its next step; waiting; 50 tokens/s trained" in shown["learner"]
    assert "reward 0.250, accuracy 0.500, staleness 1.5 (at most 2), gamma 0.9900 (p10 nan)" in shown["last step"]
    assert shown["ledger"].startswith("24 prompted = 4 trained + 8 dropped or dead + 12 in flight")
    assert shown["dropped"] == "50% of all judged: stale 4, dead: bad_trajectory 4"
    assert "routershift dead" in shown["dead"]


async def test_turns_are_said_of_a_set_that_is_played(run: Run) -> None:
    evaluated = {"version": 20, "accuracy": 0.25, "greedy_accuracy": None}
    sets = {"sums": evaluated, "mazes": {**evaluated, "mean_turns": 2.125}}
    await run.report_progress(Progress(held_out=sets))
    held_out = [row.text for row in rows(await looked(run, None)) if row.label == "held-out"]
    assert held_out == ["sums: accuracy 0.250 at version 20", "mazes: accuracy 0.250, 2.12 turns at version 20"]


async def test_rates_are_what_left_each_stream_between_two_looks(run: Run) -> None:
    before = dataclasses.replace(await looked(run, None), at=0.0)
    await a_run_of_every_kind(run)
    shown = said(dataclasses.replace(await looked(run, None), at=4.0), before)
    rates = {stream: shown[stream] for stream in ("prompts", "rollouts", "scored")}
    assert [float(line.split()[-4]) for line in rates.values()] == [5.0, 4.0, 3.0]  # groups of 4, in 4 seconds


async def test_episodes_are_shown_where_there_are_some(run: Run) -> None:
    shown = said(await looked(run, None))
    assert "episodes" not in shown
    assert "prompts" in shown
    before = dataclasses.replace(await looked(run, None), at=0.0)
    for index in range(2):
        played = prompt(index)
        played.environment = "calculator"
        await run.admit(index, played, 100)
    await move(run, Stream.EPISODES, Stream.SCORED, 1)
    shown = said(dataclasses.replace(await looked(run, None), at=4.0), before)
    assert shown.keys() & set(Stream) == {"episodes", "scored"}
    assert shown["episodes"].endswith("1.0 trajectories/s -> environments")  # a group of 4, in 4 seconds
    await run.admit(2, prompt(2), 100)
    shown = said(dataclasses.replace(await looked(run, None), at=4.0), before)
    assert shown.keys() & set(Stream) == {"prompts", "episodes", "scored"}
    assert "trajectories/s" not in shown["prompts"] + shown["episodes"]  # the ledger knows only both together


async def test_states(run: Run) -> None:
    assert said(await looked(run, None))["run"].endswith(": starting")
    await run.report_progress(Progress(phase=PAUSED))
    assert said(await looked(run, None))["run"].endswith(": paused")
    assert said(await looked(run, None, live=False))["run"].endswith(": stopped while paused; this is what it left")
    await run.report_progress(Progress(phase="finished", version=3, total_steps=3, step=3))
    assert "evaluated for the last time" in said(await looked(run, None))["run"]
    await run.report_progress(Progress(final_evaluation=3))
    assert said(await looked(run, None))["run"].endswith(": finished")


async def test_most_groups_lost_is_a_warning_that_says_what_to_do(run: Run) -> None:
    found = await looked(run, None)
    ledger = dataclasses.replace(found.ledger, prompted=10, trained=2, dropped={"zero_variance": 8})
    (row,) = [row for row in rows(dataclasses.replace(found, ledger=ledger)) if row.label == "dropped"]
    assert row.level == "warning"
    assert row.text.startswith("80% of all judged: zero_variance 8; they had equal rewards for all their responses")


async def test_problems_of_the_logs_stand_last(run: Run, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    line = '{"time": "2026-11-28T10:00:0%d.000+00:00", "level": "%s", "service": "reward", "message": "a\\nb %d"}\n'
    levels = ("info", "warning", "error")
    (tmp_path / "logs/reward.jsonl").write_text("".join(line % (i, level, i) for i, level in enumerate(levels)))
    *_, first, second = text(rows(await looked(run, tmp_path))).splitlines()
    assert first.startswith("warning")
    assert first.endswith("reward: a b 1")
    assert second.startswith("error")
    assert second.endswith("reward: a b 2")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "0 s"), (99, "99 s"), (100, "2 min"), (3599, "1 h 00 min"), (7500, "2 h 05 min"), (273600, "3 d 4 h")],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
