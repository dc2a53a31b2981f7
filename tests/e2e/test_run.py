"""One short run through all processes with each engine, and what is left of it."""

import asyncio
import json
import signal
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
from safetensors.torch import load_file

from services.learner.checkpointing.checkpoint import trained_groups
from shared.clients import LearnerClient
from shared.streams.keys import Stream
from shared.tracking import records
from shared.weights import published
from tests.support import plain_loop
from tests.support.command import RECIPE, Invocation, Start, settings

SUMMARY = {
    "task", "engine", "algorithm", "steps", "accuracy_before", "accuracy_after", "trajectories_trained",
    "trajectories_dropped", "max_staleness_seen", "rollouts_per_second", "seconds",
}  # fmt: skip
STEPS = 4
GROUPS = 8
SAMPLES = 8


def wait_for(path: Path, lines: int, invocation: Invocation, timeout: float = 120.0) -> None:
    deadline = time.monotonic() + timeout
    while len(records.read(path)) < lines:
        assert invocation.process.poll() is None, invocation.process.communicate()
        assert time.monotonic() < deadline, f"{path} has fewer than {lines} lines"
        time.sleep(0.1)


async def come_to_rest(endpoints: Path) -> None:
    """No step begins, and what was trained on is settled."""
    address = json.loads(endpoints.read_text())["services"]["learner"]["grpc"]
    async with LearnerClient(address) as learner:
        await learner.pause()
        await learner.checkpoint()


async def test_a_synchronous_run_is_a_plain_loop(start: Start, tmp_path: Path) -> None:
    """Prompts that a trained batch makes room for wait for the weights that it made: nothing is dropped as stale.

    The log-probs of the sampler depend in their last bits on which requests share a batch, so the learner recomputes
    them. A response would differ with about one token in a million.
    """
    flags = settings(run__steps=6, run__max_staleness=0, generation__engine="torch", learner__proximal="recompute")
    code, out, err = start("run", str(RECIPE), *flags).finish(timeout=240)
    assert code == 0, err
    summary = json.loads(out.splitlines()[-1])
    assert set(summary["trajectories_dropped"]) <= {"zero_variance", "run_finished"}
    assert summary["max_staleness_seen"] == 0

    plain = await plain_loop.run(RECIPE, [flag for flag in flags if flag != "--set"], tmp_path / "plain")
    steps = defaultdict(list)
    for group, step in sorted(trained_groups(tmp_path / "runs/test/checkpoints").items()):
        steps[step].append(group)
    assert [steps[step] for step in sorted(steps)] == plain.trained
    weights = load_file(tmp_path / "runs/test/weights" / published.folder_name(6) / "model.safetensors")
    assert weights.keys() == plain.weights.keys()
    assert all(torch.equal(weights[name], plain.weights[name]) for name in weights)


@pytest.mark.parametrize("engine", ["torch", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_a_run_goes_through_every_service_to_the_end(start: Start, tmp_path: Path, engine: str) -> None:
    invocation = start("run", str(RECIPE), *settings(run__steps=STEPS, generation__engine=engine))
    code, out, err = invocation.finish(timeout=240)
    assert code == 0, err
    assert invocation.nothing_left(), invocation.alive()

    summary = json.loads(out.splitlines()[-1])
    assert summary.keys() == SUMMARY
    assert (summary["task"], summary["engine"], summary["algorithm"]) == ("countdown", engine, "rspo")
    assert summary["steps"] == STEPS
    assert summary["trajectories_trained"] == STEPS * GROUPS * SAMPLES
    assert 0 <= summary["max_staleness_seen"] <= 2
    assert 0 < summary["accuracy_before"] < 1
    assert set(summary["trajectories_dropped"]) <= {"zero_variance", "run_finished", "stale"}

    folder = tmp_path / "runs/test"
    steps = records.read(folder / records.LEARNER)
    assert [record["step"] for record in steps] == list(range(1, STEPS + 1))
    assert all(0 < record["gamma_mean"] <= 1 for record in steps)
    assert all(set(record["queue"]) == set(Stream) for record in steps)
    # Behaviour log-probs and router scores came from the very weights of step 1: nothing has drifted yet.
    assert steps[0]["gamma_at_lag_zero"] > 0.999
    evaluations = records.read(folder / records.EVALUATIONS)
    assert (evaluations[0]["version"], evaluations[-1]["version"]) == (0, STEPS)
    for name in ("report.html", "summary.json"):
        assert (folder / name).stat().st_size > 100
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert best["version"] in (0, STEPS)
    if best["version"]:
        assert (tmp_path / best["checkpoint"]).is_dir()
        assert (tmp_path / best["weights"]).is_dir()
    versions = sorted(path.name for path in (folder / "weights").iterdir())
    assert versions[-1] == f"v{STEPS:08d}"
    assert (folder / "weights" / versions[-1] / published.MANIFEST).is_file()
    for service in ("curriculum", "generation", "reward", "learner"):
        lines = (folder / "logs" / f"{service}.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["service"] == service


def test_a_run_goes_on_where_it_stopped(start: Start, tmp_path: Path) -> None:
    folder = tmp_path / "runs/test"
    first = start("run", str(RECIPE), *settings(run__steps=1000))
    wait_for(folder / records.LEARNER, 2, first)
    first.process.send_signal(signal.SIGINT)
    code, _, err = first.finish(timeout=60)
    assert code == 130, err
    assert first.nothing_left(), first.alive()
    done = len(records.read(folder / records.LEARNER))

    second = start("run", str(RECIPE), *settings(run__steps=done + 2))
    code, out, err = second.finish(timeout=120)
    assert code == 0, err
    steps = [record["step"] for record in records.read(folder / records.LEARNER)]
    assert steps == list(range(1, done + 3))
    assert json.loads(out)["trajectories_trained"] == (done + 2) * GROUPS * SAMPLES
    assert f"going on with step {done + 1} of {done + 2}: {done} were done before" in err
    assert "step    1/" not in err, "what the first start said is not said again"
    assert "version    0:" not in err
    assert records.read(folder / records.EVALUATIONS)[-1]["version"] == done + 2


def test_a_run_whose_groups_all_have_equal_rewards_says_so_and_ends(start: Start, tmp_path: Path) -> None:
    never = {"reward__verifiers__countdown__kind": "regex", "reward__verifiers__countdown__pattern": "never"}
    invocation = start("run", str(RECIPE), *settings(supervisor__progress_seconds=25, **never))
    code, out, err = invocation.finish(timeout=240)
    assert code == 1, err
    assert out == ""
    said = [line for line in err.splitlines() if "had equal rewards for all their responses (zero variance)" in line]
    assert "no step for" in said[0]
    assert said[-1].startswith("routershift: no progress towards a step for ")
    assert invocation.nothing_left(), invocation.alive()


def test_an_interrupt_during_the_start_waits_for_nothing(start: Start, tmp_path: Path) -> None:
    invocation = start("run", str(RECIPE), *settings(run__steps=1000))
    log = tmp_path / "runs/test/logs/generation.jsonl"
    while not log.is_file():
        assert invocation.process.poll() is None, invocation.process.communicate()
        time.sleep(0.02)
    invocation.process.send_signal(signal.SIGINT)
    code, _, err = invocation.finish(timeout=30)
    assert code == 130, err
    assert invocation.nothing_left(), invocation.alive()


def test_a_second_interrupt_ends_everything_at_once(start: Start, tmp_path: Path) -> None:
    invocation = start("run", str(RECIPE), *settings(run__steps=1000))
    wait_for(tmp_path / "runs/test" / records.LEARNER, 1, invocation)
    invocation.process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    invocation.process.send_signal(signal.SIGINT)
    code, _, err = invocation.finish(timeout=10)
    assert code == 130, err
    assert invocation.nothing_left(), invocation.alive()


@pytest.mark.parametrize("engine", ["torch", pytest.param("vllm", marks=pytest.mark.vllm)])
def test_nothing_outlives_a_killed_supervisor(start: Start, tmp_path: Path, engine: str) -> None:
    invocation = start("run", str(RECIPE), *settings(run__steps=1000, generation__engine=engine))
    wait_for(tmp_path / "runs/test" / records.LEARNER, 1, invocation)
    invocation.process.kill()
    invocation.process.wait(10)
    assert invocation.nothing_left(), invocation.alive()


def test_up_serves_until_it_is_told_to_stop(start: Start, tmp_path: Path) -> None:
    invocation = start("up", "--recipe", str(RECIPE), *settings(run__steps=1000, learner__checkpoints__every=1))
    wait_for(tmp_path / "runs/test" / records.LEARNER, 1, invocation)
    status = start("status", "test", "--json")
    code, out, err = status.finish(timeout=30)
    assert code == 0, err
    shown = json.loads(out)
    assert shown["phase"] == "training"
    for service in json.loads((tmp_path / "runs/test/endpoints.json").read_text())["services"].values():
        with urllib.request.urlopen(service["metrics"], timeout=30) as page:  # noqa: S310  # of our own
            assert 'routershift_run_info{run="test"} 1.0' in page.read().decode()
        assert urlsplit(service["metrics"]).netloc in (tmp_path / "runs/test/prometheus.yml").read_text()
    assert shown["ledger"]["balanced"]
    # A trained group gives its ticket back before its checkpoint is durable and settles it: at rest, all hold one.
    asyncio.run(come_to_rest(tmp_path / "runs/test/endpoints.json"))
    code, out, err = start("status", "test", "--json").finish(timeout=30)
    assert code == 0, err
    shown = json.loads(out)
    assert shown["ledger"]["balanced"]
    assert 0 < shown["ledger"]["in_flight"] <= 3 * GROUPS * SAMPLES
    invocation.process.send_signal(signal.SIGTERM)
    code, _, err = invocation.finish(timeout=60)
    assert code == 0, err
    assert invocation.nothing_left(), invocation.alive()
    code, _, err = start("report", "test").finish(timeout=60)
    assert code == 0, err
