"""What training knows of tokens, kept for people: the same numbers as the diagnostics, of any pass and on any rank."""

from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.learner.data.batch import Group
from services.learner.distributed.ranks import Ranks
from services.learner.monitoring.kept import TrainedTokens
from services.learner.monitoring.report import StepReport
from services.learner.trainer import Trainer
from shared.settings import RolloutSettings, RunSettings
from tests.support import torchrun
from tests.support.models import save_model
from tests.support.rollouts import load, perturbed, random_groups
from tests.support.settings import learner_settings
from tests.support.training import PLAIN, make, with_trace

# Several passes for each update, of samples that come in another order than they are given.
CUT: dict[str, Any] = {"micro_batch_tokens": 40, "minibatches": 2}


def joined(report: StepReport, name: str) -> np.ndarray[Any, Any]:
    """Over all tokens that were kept."""
    return np.concatenate([getattr(tokens, name) for tokens in report.kept.values()])


def test_what_is_kept_of_every_token_adds_up_to_the_diagnostics(folder: Path, stale: list[Group]) -> None:
    report = make(folder, **PLAIN, **CUT).train_step(stale, kept=range(4))
    expected = report.diagnostics
    assert sorted(report.kept) == [(g, s) for g in range(4) for s in range(4)]
    for (g, s), tokens in report.kept.items():
        count = stale[g].samples[s].completion.token_ids.size
        assert tokens.logprobs.shape == tokens.entropy.shape == tokens.clipped.shape == (count,)
        assert tokens.drift is not None
        assert tokens.drift.shape == (count, 3)
    behaviour = np.concatenate([stale[g].samples[s].completion.logprobs for g, s in report.kept])
    assert np.exp(joined(report, "logprobs") - behaviour).mean() == pytest.approx(expected["ratio_mean"], rel=1e-4)
    assert np.exp(joined(report, "log_gamma")).mean() == pytest.approx(expected["gamma_mean"], rel=1e-5)
    assert joined(report, "entropy").mean() == pytest.approx(expected["entropy"], rel=1e-5)
    assert joined(report, "clipped").mean() == pytest.approx(expected["clip_fraction"], rel=1e-5)
    for layer, drift in enumerate(joined(report, "drift").mean(axis=0)):
        assert drift == pytest.approx(expected[f"router_shift_layer_{layer}"], rel=1e-4)
    # The mean over layers is what gamma is made of.
    np.testing.assert_allclose(-joined(report, "drift").mean(axis=1), joined(report, "log_gamma"), atol=1e-5)


def test_advantages_are_those_of_the_sample(folder: Path, stale: list[Group]) -> None:
    report = make(folder, **PLAIN, **CUT).train_step(stale, kept=[2])
    rewards = np.array([sample.reward for sample in stale[2].samples])
    assert [report.kept[2, s].advantage for s in range(4)] == pytest.approx(
        (rewards - rewards.mean()) / rewards.std(), rel=1e-5
    )


def test_some_are_kept_as_they_are_among_all(folder: Path, stale: list[Group]) -> None:
    every = make(folder, **PLAIN, **CUT).train_step(stale, kept=range(4)).kept
    some = make(folder, **PLAIN, **CUT).train_step(stale, kept=[1, 3]).kept
    assert sorted(some) == [(g, s) for g in (1, 3) for s in range(4)]
    for place, tokens in some.items():
        assert_same(tokens, every[place])


def test_the_first_pass_over_a_sample_is_the_one_that_is_kept(folder: Path, fresh: list[Group]) -> None:
    """At this learning rate, the routers of a second epoch are others."""
    settings: dict[str, Any] = {"optimizer__learning_rate": 1e-2, "micro_batch_tokens": 40}
    once = make(folder, **settings).train_step(fresh, kept=[0, 1])
    twice = make(folder, **settings, epochs=2).train_step(fresh, kept=[0, 1])
    assert twice.diagnostics["gamma_mean"] < 0.99
    for place, tokens in twice.kept.items():
        assert_same(tokens, once.kept[place])


def test_keeping_changes_nothing_that_is_learnt(folder: Path, stale: list[Group]) -> None:
    settings: dict[str, Any] = {**CUT, "optimizer__learning_rate": 1e-2, "epochs": 2}
    plain, keeping = make(folder, **settings), make(folder, **settings)
    for _ in range(2):
        without = plain.train_step(stale)
        assert without.kept == {}
        assert keeping.train_step(stale, kept=range(4)).diagnostics == without.diagnostics


def test_without_router_shift_there_is_neither_gamma_nor_drift(folder: Path, stale: list[Group]) -> None:
    tokens = make(folder, **PLAIN, algorithm="gmpo").train_step(stale, kept=[0]).kept[0, 0]
    assert (tokens.log_gamma, tokens.drift) == (None, None)
    assert tokens.logprobs.size > 0


def test_the_drift_of_a_missing_route_is_unknown(folder: Path, stale: list[Group]) -> None:
    scores = stale[0].samples[1].completion.router_trace
    assert scores is not None
    holed = scores.scores.copy()
    holed[0, 1] = 1.0  # the first token, its second layer
    groups = [with_trace(stale[0], log_scores=holed), *stale[1:]]
    tokens = make(folder, **PLAIN, **CUT).train_step(groups, kept=[0]).kept[0, 1]
    assert tokens.drift is not None
    assert tokens.log_gamma is not None
    assert np.isnan(tokens.drift[0]).all()
    assert tokens.log_gamma[0] == 0
    assert np.isfinite(tokens.drift[1:]).all()


def test_a_baseline_is_subtracted_from_gamma_and_not_from_drift(folder: Path, stale: list[Group]) -> None:
    settings: dict[str, Any] = {**PLAIN, "router_shift__mismatch_baseline": "subtract"}
    trainer = make(folder, **settings)
    trainer.train_step(stale)
    tokens = trainer.train_step(stale, kept=[0]).kept[0, 0]
    assert tokens.drift is not None
    assert tokens.log_gamma is not None
    assert (tokens.log_gamma >= -tokens.drift.mean(axis=1) - 1e-6).all()
    assert (tokens.log_gamma > -tokens.drift.mean(axis=1) + 1e-6).any()


def test_every_rank_gives_what_it_has(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    one = trainer_of(tmp_path).train_step(groups_of(tmp_path), kept=[0, 2]).kept
    torchrun.run(2, part, tmp_path)
    with np.load(tmp_path / "kept.npz") as several:
        assert sorted(several) == sorted(f"{g},{s},{name}" for g, s in one for name in ("logprobs", "drift"))
        for (g, s), tokens in one.items():
            assert tokens.drift is not None
            np.testing.assert_allclose(several[f"{g},{s},logprobs"], tokens.logprobs, atol=1e-5)
            np.testing.assert_allclose(several[f"{g},{s},drift"], tokens.drift, atol=1e-5)


def part(ranks: Ranks, folder: str) -> None:
    trainer = trainer_of(Path(folder), ranks)
    if ranks.rank:
        trainer.follow()
        return
    kept = trainer.train_step(groups_of(Path(folder)), kept=[0, 2]).kept
    arrays = {f"{g},{s},{n}": getattr(t, n) for (g, s), t in kept.items() for n in ("logprobs", "drift")}
    np.savez(Path(folder, "kept.npz"), **arrays)
    trainer.close()


def trainer_of(folder: Path, ranks: Ranks | None = None) -> Trainer:
    run = RunSettings(model=folder / "model")
    return Trainer(learner_settings(**CUT, epochs=2), run, RolloutSettings(), ranks)


def groups_of(folder: Path) -> list[Group]:
    return random_groups(perturbed(load(folder / "model"), 0.005), groups=3, samples=3)


def assert_same(found: TrainedTokens, expected: TrainedTokens) -> None:
    for ours, theirs in zip(astuple(found), astuple(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
