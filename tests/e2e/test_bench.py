"""Benches of whole runs: all sides are compared, versions are moved, a cell of the study goes through all services."""

import json
from pathlib import Path

import pytest

from shared.errors import UnavailableError
from shared.tracking import records
from tests.support import trl
from tests.support.command import Start


@pytest.mark.timeout(600)
def test_every_side_trains_and_is_compared(start: Start) -> None:
    try:
        trl.python()
    except UnavailableError as error:
        pytest.skip(str(error))
    running = start("bench", "end-to-end", "--quick", "--json")
    code, out, err = running.finish(580)
    assert code == 0, err
    (shown,) = json.loads(out.splitlines()[-1])["workloads"].values()
    assert shown["ratio_to_trl"]["rollouts_per_second"] > 0
    assert shown["ratio_to_synchronous"] > 0
    assert shown["slowest_stage_share"] > 0
    steps, groups, samples = 2, 8, 8
    for figures in (rounds[0] for rounds in shown["sides"].values()):
        assert round(figures["rollouts_per_second"] * figures["seconds"]) >= steps * groups * samples
        assert figures["cpu_seconds_per_rollout"] > 0
        ((step, seconds, accuracy),) = figures["curve"]
        assert step == steps
        assert seconds == pytest.approx(figures["seconds"], abs=0.2)
        assert 0 < accuracy < 1
    services = {"supervisor", "redis", "curriculum", "generation", "reward", "learner"}
    assert shown["sides"]["torch"][0]["where"]["cpu_seconds_per_second"].keys() == services
    assert running.nothing_left()


def test_every_transfer_brings_versions_and_is_measured(start: Start) -> None:
    running = start("bench", "weights", "--quick", "--json")
    code, out, err = running.finish(110)
    assert code == 0, err
    shown = json.loads(out.splitlines()[-1])["models"]["tiny"]
    whole = 2 * shown["parameters"]  # in bfloat16
    transfers = shown["transfers"]
    assert transfers.keys() == {"files", "delta", "broadcast", "broadcast_delta"}
    for delta in ("delta", "broadcast_delta"):
        assert 0.02 * whole < transfers[delta]["bytes"] < 0.04 * whole  # four bytes for each change, and headers
    assert transfers["broadcast"]["bytes"] == whole < transfers["files"]["bytes"] < 1.1 * whole
    for figures in transfers.values():
        assert figures["publish_seconds"]["median"] + figures["take_seconds"]["median"] > 0
        assert figures["longest_gap_seconds"]["median"] >= figures["pause_seconds"]["median"] > 0
    assert shown["cpu"]["seconds_per_version"].keys() == transfers.keys()
    assert running.nothing_left()


def test_a_cell_of_the_study_goes_through_all_services(start: Start, tmp_path: Path) -> None:
    runs = tmp_path / "runs.jsonl"
    running = start(
        *("bench", "stability", "--services", "--json", "--runs", str(runs), "--arms", "gmpo+shift", "--seeds", "1"),
        *("--steps", "2", "--every", "1", "--groups", "2", "--held-out", "4", "--staleness", "1"),
    )
    code, out, err = running.finish(110)
    assert code == 0, err
    shown = json.loads(out.splitlines()[-1])
    assert (shown["runs"], shown["through"]) == (1, "services")
    assert shown["cpu_seconds"] > 1  # of all services
    (record,) = records.read(runs)
    steps = [evaluation["step"] for evaluation in record["evaluations"]]
    assert (steps[0], steps[-1]) == (0, 2)
    assert all(0 < batch["gamma_mean"] <= 1 and batch["token_lag_mean"] <= 1 for batch in record["batches"])
    assert len(record["batches"]) == 2
    assert running.nothing_left()
