"""Each tracker with its real package: what its own reader finds, a resumed run, and failures that stop nothing."""

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.trackers import Trackers, packages

EVALUATION = {
    "set": "held-out", "main": True, "version": 2, "accuracy": 0.5, "pass_at_k": {"2": 0.75}, "greedy_accuracy": None,
}  # fmt: skip


def step(number: int, loss: float = 0.5) -> dict[str, Any]:
    return {
        "step": number,
        "loss": loss,
        "queue": {"prompts": 3},
        "router_shift_layer_0": 0.25,
        "router_shift_layer_1": 0.125,
    }


STEPS = [step(1), step(2), step(3)]
AGAIN = [step(2, 0.25), step(3, 0.25), step(4, 0.25)]  # a run that was resumed from the checkpoint of step 1


@pytest.fixture(scope="module")
def installed() -> Path:
    return packages()


@pytest.fixture
def trackers(installed: Path, tmp_path: Path) -> Trackers:
    return Trackers(installed, tmp_path)


@pytest.fixture
def silent_server() -> Iterator[str]:
    """The URL of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def a_run_and_its_resumption(trackers: Trackers, name: str, **tracking: Any) -> None:
    """The learner, then the curriculum, then a learner that takes two steps again, with another seed."""
    ok = {f"{name} ok": 3, f"{name} failed": 0, f"{name} dropped": 0}
    options = {"tracking": {"close_seconds": 240, **tracking}}
    assert trackers.record(name, service="learner", records=STEPS, **options)["counts"] == ok
    first = trackers.record(name, service="curriculum", records=[EVALUATION], **options)
    assert first["counts"] == {**ok, f"{name} ok": 1}
    assert trackers.record(name, service="learner", records=AGAIN, seed=1, **options)["counts"] == ok


def test_tensorboard(trackers: Trackers) -> None:
    a_run_and_its_resumption(trackers, "tensorboard")
    found = trackers.read("tensorboard")
    learner, curriculum = found["learner"], found["curriculum"]
    assert learner["scalars"]["train/loss"] == [[1, 0.5], [2, 0.25], [3, 0.25], [4, 0.25]]
    assert set(learner["scalars"]) == {
        "train/loss", "queue/prompts", "router_shift/layer_0", "router_shift/layer_1",
    }  # fmt: skip
    assert curriculum["scalars"] == {
        "evaluation/held-out/accuracy": [[2, 0.5]],
        "evaluation/held-out/pass_at_k/2": [[2, 0.75]],
    }
    config = json.loads(learner["texts"]["config"].removeprefix("```json\n").removesuffix("\n```"))
    assert (config["run"]["id"], config["run"]["seed"]) == ("test", 1)


def test_wandb(trackers: Trackers) -> None:
    a_run_and_its_resumption(trackers, "wandb", wandb={"mode": "offline", "tags": "moe,ablation", "project": "own"})
    found = trackers.read("wandb")
    assert {name: len(starts) for name, starts in found.items()} == {"test-learner": 2, "test-curriculum": 1}
    first, resumed = found["test-learner"]
    assert [first[key] for key in ("group", "job", "project", "tags", "axis")] == [
        "test", "learner", "own", ["moe", "ablation"], "step",
    ]  # fmt: skip
    assert [(point["step"], point["train/loss"]) for point in first["history"]] == [(1, 0.5), (2, 0.5), (3, 0.5)]
    assert [(point["step"], point["train/loss"]) for point in resumed["history"]] == [(2, 0.25), (3, 0.25), (4, 0.25)]
    assert first["history"][0]["router_shift/layer_1"] == 0.125
    assert (first["config"]["run"]["seed"], resumed["config"]["run"]["seed"]) == (0, 1)
    (evaluated,) = found["test-curriculum"]
    assert evaluated["group"] == "test"
    assert evaluated["history"] == [
        {"step": 2, "evaluation/held-out/accuracy": 0.5, "evaluation/held-out/pass_at_k/2": 0.75}
    ]


def test_mlflow(trackers: Trackers) -> None:
    """Both services start at once and find or make the same run, which the learner then goes on with."""
    options = {"tracking": {"close_seconds": 240, "mlflow": {"tags": "team=moe,draft"}}}
    with ThreadPoolExecutor(2) as pool:
        learner = pool.submit(trackers.record, "mlflow", service="learner", records=STEPS, **options)
        curriculum = pool.submit(trackers.record, "mlflow", service="curriculum", records=[EVALUATION], **options)
        assert learner.result()["counts"]["mlflow ok"] == 3
        assert curriculum.result()["counts"]["mlflow ok"] == 1
    assert trackers.record("mlflow", service="learner", records=AGAIN, seed=1, **options)["counts"]["mlflow ok"] == 3
    (found,) = trackers.read("mlflow")
    assert (found["name"], found["status"]) == ("test", "FINISHED")
    assert found["metrics"]["train/loss"] == [[1, 0.5], [2, 0.5], [3, 0.5], [2, 0.25], [3, 0.25], [4, 0.25]]
    assert found["metrics"]["router_shift/layer_1"][0] == [1, 0.125]
    assert found["metrics"]["evaluation/held-out/pass_at_k/2"] == [[2, 0.75]]
    assert (found["params"]["run.id"], found["params"]["run.seed"]) == ("test", "0")
    tags = {name: found["tags"].get(name) for name in ("team", "draft", "routershift.run", "run.seed")}
    assert tags == {"team": "moe", "draft": "true", "routershift.run": "test", "run.seed": "1"}


def test_trackio(trackers: Trackers) -> None:
    a_run_and_its_resumption(trackers, "trackio")
    found = trackers.read("trackio")
    assert {name: run["runs"] for name, run in found.items()} == {"test-learner": 1, "test-curriculum": 1}
    logs = found["test-learner"]["logs"]
    losses = [(log["step"], log["train/loss"]) for log in logs if "train/loss" in log]
    assert sorted(losses) == [(1, 0.5), (2, 0.25), (2, 0.5), (3, 0.25), (3, 0.5), (4, 0.25)]
    assert logs[0]["router_shift/layer_1"] == 0.125
    assert (found["test-learner"]["config"]["run"]["seed"], found["test-learner"]["config"]["_Group"]) == (1, "test")
    (evaluated,) = found["test-curriculum"]["logs"]
    assert (evaluated["step"], evaluated["evaluation/held-out/accuracy"]) == (2, 0.5)


def test_a_disk_that_is_full_costs_records_and_another_event_file_begins(trackers: Trackers) -> None:
    long = [{"step": number, **{f"number_{i}": 1.0 for i in range(400)}} for number in range(1, 9)]
    answer = trackers.record("tensorboard", service="learner", records=long, largest_file=40_000)
    counts = answer["counts"]
    assert counts["tensorboard failed"] > 0
    assert counts["tensorboard ok"] > 0
    assert counts["tensorboard ok"] + counts["tensorboard failed"] == 8
    assert "tracker tensorboard: " in answer["log"]
    steps = [step for step, _ in trackers.read("tensorboard")["learner"]["scalars"]["train/number_0"]]
    assert len(steps) == counts["tensorboard ok"]


@pytest.mark.parametrize(
    ("name", "tracking"),
    [
        ("tensorboard", {"tensorboard": {"folder": "taken/events"}}),
        ("wandb", {"wandb": {"mode": "offline", "folder": "taken/runs"}}),
        ("mlflow", {"mlflow": {"uri": "sqlite:////proc/mlflow.db"}, "close_seconds": 2}),  # MLflow tries for minutes
        ("trackio", {"trackio": {"folder": "/proc/trackio"}}),
    ],
)
def test_a_folder_that_takes_no_files_stops_nothing(trackers: Trackers, name: str, tracking: dict[str, Any]) -> None:
    (trackers.folder / "taken").write_text("a file")
    answer = trackers.record(name, service="learner", records=STEPS, tracking={"close_seconds": 240, **tracking})
    lost = "dropped" if name == "mlflow" else "failed"
    assert {outcome: n for outcome, n in answer["counts"].items() if n} == {f"{name} {lost}": 3}, answer["log"]
    assert answer["log"].count(f"tracker {name}") == 1, answer["log"]
    assert len((trackers.folder / "test" / "learner.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_server_that_never_answers_is_left_behind(trackers: Trackers, name: str, silent_server: str) -> None:
    tracking = {"close_seconds": 1.0, "mlflow": {"uri": silent_server}, "wandb": {"mode": "online"}}
    environment = {"WANDB_BASE_URL": silent_server, "WANDB_API_KEY": "0" * 40}
    answer = trackers.record(name, service="learner", records=STEPS, tracking=tracking, environment=environment)
    assert answer["counts"] == {f"{name} ok": 0, f"{name} failed": 0, f"{name} dropped": 3}
    assert f"tracker {name} did not end within 1 s (tracking.close_seconds); it loses 3 records" in answer["log"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_network_that_is_down_is_said_or_left_behind(trackers: Trackers, name: str) -> None:
    nobody = "http://127.0.0.1:9"
    tracking = {
        "close_seconds": 10.0,
        "mlflow": {"uri": nobody},
        "wandb": {"mode": "online", "start_seconds": 1.0},
    }
    environment = {
        "WANDB_BASE_URL": nobody, "WANDB_API_KEY": "0" * 40, "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }  # fmt: skip
    answer = trackers.record(name, service="learner", records=STEPS, tracking=tracking, environment=environment)
    counts = answer["counts"]
    assert counts[f"{name} ok"] == 0
    assert counts[f"{name} failed"] + counts[f"{name} dropped"] == 3
    assert f"tracker {name}" in answer["log"]


def test_wandb_without_a_key_is_refused_at_the_start(trackers: Trackers) -> None:
    answer = trackers.record("wandb", service="learner", records=[])
    assert answer["error"].startswith("PreconditionError: run.trackers has 'wandb', and there is no API key: set ")
