"""What the bench of whole runs makes of its measurements, and of processes. The runs themselves are in tests/e2e."""

import math
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.bench.training import long_tail, processes
from tests.bench.training.comparison import Options, Workload, result
from tests.bench.training.figures import Point, Training, paired, seconds_to
from tests.bench.training.stages import Alone

RECIPE = Path(__file__).parents[4] / "deploy/recipes/countdown.toml"


def workload() -> Workload:
    return Workload("countdown", RECIPE, {"run.steps": 2}, 1, (0.41, 0.42), 0.42, 16, 2)


def options(*engines: str) -> Options:
    return Options(engines, rounds=2, seed=5, pinned=False, threads=2, folder=Path(), evaluate_from=1, stage_rounds=1)


def training(seconds: float, rollouts: int = 1000, trained: int = 600) -> Training:
    return Training(seconds, rollouts, trained, tokens=8 * rollouts, cpu_seconds=2 * seconds)


def curve(*seconds_at_42: float) -> list[list[Point]]:
    """A round for each; 0.42 is passed at the second of three versions."""
    return [[Point(1, s / 2, 0.415), Point(2, s, 0.425), Point(3, 2 * s, 0.419)] for s in seconds_at_42]


def test_the_first_version_at_an_accuracy_is_the_one_that_counts() -> None:
    (points,) = curve(10.0)
    assert seconds_to(0.41, points) == 5.0
    assert seconds_to(0.42, points) == 10.0
    assert seconds_to(0.43, points) is None


def test_rounds_without_a_value_are_left_out_of_a_ratio() -> None:
    assert paired([2.0, None, 6.0], [4.0, 1.0, 2.0]) == {"median": 1.75, "min": 0.5, "max": 3.0, "rounds": 2}
    assert paired([None], [1.0]) is None
    assert paired([1.0], [None]) is None


def test_a_workload_shows_ratios_of_its_rounds_and_all_that_they_are_made_of() -> None:
    runs = {
        "torch": [training(10), training(20)],
        "vllm": [training(20), training(20)],
        "synchronous": [training(15, rollouts=600), training(30, rollouts=600)],
        "trl": [training(20), training(20, trained=300)],
    }
    curves = {"torch": curve(10, 20), "vllm": curve(20, 20), "synchronous": curve(5, 5), "trl": curve(20, 20)}
    alone = {"generation": [Alone(200, 1600, 0.01)] * 2, "learner": [Alone(75, 600, 0.01)] * 2}
    shown = result(workload(), options("torch", "vllm"), runs, curves, alone)
    assert shown["ratio_to_trl"] == {
        "rollouts_per_second": 1.5,
        "trained_rollouts_per_second": 2.0,
        "tokens_per_second": 1.5,
        "cpu_seconds_per_rollout": 0.75,
        "seconds_to_accuracy": 0.75,
    }
    assert shown["ratio_to_synchronous"] == 1.5
    # Generation alone makes 200 a second, of which the pipeline would train on 120; the learner alone trains on 75.
    assert shown["alone"]["shares"] == [60 / 75, 30 / 75]
    assert shown["slowest_stage_share"] == pytest.approx(0.6)
    assert shown["other_engines"]["vllm"]["ratio_to_trl"]["rollouts_per_second"] == 1.0
    assert shown["seeds"] == [5, 6]
    assert shown["held_out"]["rounds_that_reached_it"] == dict.fromkeys(runs, 2)
    assert {side: len(rounds) for side, rounds in shown["sides"].items()} == dict.fromkeys(runs, 2)
    assert shown["sides"]["trl"][1]["seconds_to_accuracy"] == {"0.41": 10, "0.42": 20}


def test_a_round_without_stages_alone_has_no_share() -> None:
    runs = {side: [training(10), training(10)] for side in ("torch", "synchronous", "trl")}
    alone = {"generation": [Alone(200, 1600, 0.01)], "learner": [Alone(75, 600, 0.01)]}
    shown = result(workload(), options("torch"), runs, {side: curve(1.0, 1.0) for side in runs}, alone)
    assert shown["alone"]["shares"] == [60 / 75]


def test_generation_is_the_slowest_stage_where_what_is_dropped_makes_it_so() -> None:
    runs = {side: [training(10, trained=100)] for side in ("torch", "synchronous", "trl")}
    alone = {"generation": [Alone(200, 1600, 0.01)], "learner": [Alone(75, 600, 0.01)]}
    shown = result(workload(), options("torch"), runs, {side: curve(1.0) for side in runs}, alone)
    assert shown["slowest_stage_share"] == pytest.approx(0.5)


def test_cpu_seconds_are_told_by_process_whatever_it_was_named_before() -> None:
    before = {1: processes.Spent("supervisor", 1.0), 2: processes.Spent("python", 3.0)}
    after = {
        1: processes.Spent("supervisor", 1.5),
        2: processes.Spent("learner", 5.0),
        3: processes.Spent("learner", 0.5),  # started since
    }
    assert processes.between(before, after) == {"supervisor": 0.5, "learner": 2.5}


@pytest.fixture
def tree() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that stands for a run, with two services of which one has computed and has a second thread."""
    service = (
        "import setproctitle, sys, threading, time\n"
        "setproctitle.setproctitle('routershift serve ' + sys.argv[1])\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "while sys.argv[1] == 'learner' and time.process_time() < 0.5: pass\n"
        "print(flush=True); time.sleep(60)"
    )
    run = (
        "import subprocess, sys\n"
        "started = [subprocess.Popen([sys.executable, '-c', sys.argv[1], name], stdout=subprocess.PIPE)\n"
        "           for name in ('learner', 'reward')]\n"
        "[process.stdout.readline() for process in started]\n"
        "print(flush=True); sys.stdin.read(); [process.kill() for process in started]"
    )
    process = subprocess.Popen([sys.executable, "-c", run, service], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.communicate(b"")


def test_the_time_of_a_run_is_told_by_service(tree: "subprocess.Popen[bytes]") -> None:
    spent = {found.service: found.seconds for found in processes.spent_by_process(tree.pid).values()}
    assert spent.keys() == {"supervisor", "learner", "reward"}
    assert spent["learner"] > 0.4


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_pinned_learner_has_a_core_that_no_other_process_has(tree: "subprocess.Popen[bytes]") -> None:
    alone, *others = sorted(os.sched_getaffinity(0))
    processes.pin(tree.pid, "learner", alone, others)
    for child in psutil.Process(tree.pid).children():
        expected = {alone} if processes.service_of(child) == "learner" else set(others)
        threads = [int(path.name) for path in Path(f"/proc/{child.pid}/task").iterdir()]
        assert len(threads) == 2
        assert all(os.sched_getaffinity(thread) == expected for thread in threads)
    assert os.sched_getaffinity(tree.pid) == set(others)


def test_lengths_are_log_normal_and_follow_from_the_prompt() -> None:
    lengths = [long_tail.length(f"prompt {i}", 2048) for i in range(2000)]
    assert lengths == [long_tail.length(f"prompt {i}", 2048) for i in range(2000)]
    assert statistics.median(lengths) == pytest.approx(0.1 * 2048, rel=0.1)
    assert statistics.stdev(map(math.log, lengths)) == pytest.approx(1.0, rel=0.1)
    assert max(lengths) == 2048


def test_the_pipeline_of_long_tails_is_held_against_generation_and_its_slowest_stage() -> None:
    pipeline = long_tail.Pipeline(800.0, 2.5, {"generation": 0.001}, {"stale": 0.1}, 320.0)
    alone = {"generation": [Alone(5, 1600, 0.1)], "learner": [Alone(3, 1000, 0.2)]}
    padded = {"tokens_per_second": 400.0, "generate_tokens_per_second": 320.0}
    shown = long_tail.result([pipeline], alone, [padded], [3])
    assert shown["ratio_to_trl"] == {"tokens_per_second": 2.0, "generate_tokens_per_second": 5.0}
    assert shown["slowest_stage_share"] == 0.8
    assert shown["ratio_to_generation_alone"] == 0.5
    assert shown["sides"]["pipeline"][0]["dropped_share"] == {"stale": 0.1}
    assert shown["seeds"] == [3]
