"""What a step reports: on the weights that sampled, on older ones, and on a mixture."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.learner.data.batch import Group
from shared.tracking import records
from tests.support.models import VOCABULARY
from tests.support.training import PLAIN, filled, make, poisoned, split, trace_of, with_completion, with_trace


def test_diagnostics_on_the_weights_that_sampled(folder: Path, fresh: list[Group]) -> None:
    found = make(folder, **PLAIN).train_step(fresh).diagnostics
    tokens = sum(sample.completion.token_ids.size for group in fresh for sample in group.samples)
    assert found["tokens"] == tokens
    assert found["ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["clip_fraction"] == 0
    assert found["gamma_at_lag_zero"] == pytest.approx(1, abs=1e-3)
    assert found["gamma_mean"] == found["gamma_at_lag_zero"]
    assert found["gamma_floor_fraction"] == 0
    assert found["token_lag_mean"] == 0
    assert 0 < found["entropy"] < math.log(VOCABULARY)


def test_diagnostics_of_stale_rollouts(folder: Path, stale: list[Group]) -> None:
    trainer = make(folder, **PLAIN, router_shift__gamma_min=0.85)
    trainer.train_step(stale)
    found = trainer.train_step(stale).diagnostics
    assert found["token_lag_mean"] == found["token_lag_max"] == 1
    assert "gamma_at_lag_zero" not in found
    assert found["kl"] > 0
    assert 0 < found["gamma_p10"] < found["gamma_mean"] < 1
    assert 0 < found["gamma_floor_fraction"] < 1
    layers = [found[f"router_shift_layer_{i}"] for i in range(3)]
    assert all(0 < layer < 1 for layer in layers)


def test_gamma_at_lag_zero_is_taken_before_the_weights_move(folder: Path, fresh: list[Group]) -> None:
    """From the first of two updates only: at this learning rate the second sees other routers."""
    found = make(folder, optimizer__learning_rate=1e-2, minibatches=2).train_step(fresh).diagnostics
    assert found["gamma_at_lag_zero"] == pytest.approx(1, abs=1e-3)
    assert found["gamma_mean"] < 0.99


def test_tokens_of_one_response_may_come_from_different_versions(folder: Path, fresh: list[Group]) -> None:
    trainer = make(folder, **PLAIN)
    trainer.train_step(fresh)
    groups = [
        with_completion(group, lambda c: replace(c, versions=split(c, (0, 1)))) if i == 0 else group
        for i, group in enumerate(fresh)
    ]
    found = trainer.train_step(groups).diagnostics
    assert 0 < found["token_lag_mean"] < 1
    assert found["gamma_at_lag_zero"] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("logprob", [-300.0, -1e4, -3e38])
def test_log_probs_far_below_the_policys_leave_finite_numbers(
    folder: Path, fresh: list[Group], tmp_path: Path, logprob: float
) -> None:
    groups = [with_completion(g, lambda c: replace(c, logprobs=filled(c.logprobs, logprob))) for g in fresh]
    report = make(folder, algorithm="gmpo", **PLAIN).train_step(groups)
    assert report.skipped is None
    assert {name: value for name, value in report.diagnostics.items() if not math.isfinite(value)} == {}
    assert report.diagnostics["ratio_max"] > 1e30
    assert report.diagnostics["kl"] > 1e28
    records.append(tmp_path / "records.jsonl", report.diagnostics)
    assert_strict(tmp_path / "records.jsonl")


@pytest.mark.parametrize("aggregation", ["mean", "product"])
@pytest.mark.parametrize("score", [-200.0, -60000.0])
def test_router_scores_far_below_the_routers_leave_finite_numbers(
    folder: Path, fresh: list[Group], aggregation: str, score: float
) -> None:
    groups = [with_trace(g, log_scores=np.full_like(trace_of(g).scores, score)) for g in fresh]
    report = make(folder, router_shift__layer_aggregation=aggregation, **PLAIN).train_step(groups)
    assert report.skipped is None
    assert {name: value for name, value in report.diagnostics.items() if not math.isfinite(value)} == {}
    assert report.diagnostics["router_shift_layer_1"] > 10
    assert report.diagnostics["gamma_p10"] == 0


def test_an_update_that_was_left_out_is_counted_and_spoils_no_mean(folder: Path, fresh: list[Group]) -> None:
    trainer = make(folder, minibatches=len(fresh), **PLAIN)
    report = trainer.train_step([poisoned(trainer, fresh[0]), *fresh[1:]])
    assert report.skipped is None
    assert report.diagnostics["skipped_updates"] == 1
    assert math.isfinite(report.diagnostics["loss"])
    assert math.isfinite(report.diagnostics["grad_norm"])


def assert_strict(path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=refuse)
