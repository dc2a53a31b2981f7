"""What a step reports: on the weights that sampled, on older ones, and on a mixture."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from services.learner.data.batch import Group
from tests.support.models import VOCABULARY
from tests.support.training import PLAIN, make, split, with_completion


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
