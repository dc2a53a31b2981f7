"""What the settings of the learner can change about a step: each alone, through the trainer."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from routershift.algorithms.advantages import ZERO_VARIANCE
from routershift.trajectory import Trajectory
from services.learner.data.batch import Group
from services.learner.model.optimizer import factor
from services.learner.model.settings import OptimizerSettings
from services.learner.trainer import Trainer
from shared.errors import InvalidInputError, PreconditionError
from shared.settings import RolloutSettings, RunSettings
from tests.support.models import save_model
from tests.support.rollouts import load, perturbed, random_groups
from tests.support.settings import learner_settings
from tests.support.training import save

# Updates small enough to compare gradients, and no clipping of their norm.
PLAIN: dict[str, Any] = {"optimizer__learning_rate": 1e-12, "optimizer__max_grad_norm": 1e9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def fresh(folder: Path) -> list[Group]:
    return random_groups(load(folder), groups=4, samples=4)


@pytest.fixture(scope="module")
def stale(folder: Path) -> list[Group]:
    """Sampled by weights that are not the learner's."""
    return random_groups(perturbed(load(folder), 0.01), groups=4, samples=4)


def make(folder: Path, max_tokens: int = 12, steps: int = 100, **settings: Any) -> Trainer:
    run, rollout = RunSettings(model=folder, steps=steps), RolloutSettings(max_tokens=max_tokens)
    return Trainer(learner_settings(**settings), run, rollout)


def gradient(folder: Path, groups: Sequence[Group], **settings: Any) -> torch.Tensor:
    """The gradient of the whole model, in one vector."""
    trainer = make(folder, **(PLAIN | settings))
    assert trainer.train_step(groups).skipped is None
    return torch.cat([p.grad.flatten() for p in trainer._parameters.values() if p.grad is not None])


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).norm() / right.norm())


@pytest.mark.parametrize("algorithm", ["rspo", "grpo", "gspo", "cispo", "reinforce"])
def test_packing_and_cutting_change_nothing(folder: Path, stale: list[Group], algorithm: str) -> None:
    """All responses packed into one pass against one response a pass."""
    settings: dict[str, Any] = {"algorithm": algorithm, "clip_low": None, "clip_high": None}
    whole = gradient(folder, stale, **settings)
    assert distance(gradient(folder, stale, micro_batch_tokens=1, **settings), whole) < 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"proximal": "recompute"},
        {"proximal": "recompute", "correction__kind": "truncate"},
        {"correction__kind": "mask"},
        {"correction__kind": "sequence_mask"},
        {"routing_replay": "r3"},
        {"routing_replay": "r2", "proximal": "recompute"},
        {"router_shift__mismatch_baseline": "subtract"},
        {"kl_coefficient": 0.5},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
@pytest.mark.parametrize("activation_checkpointing", [False, True])
def test_on_the_weights_that_sampled_a_correction_changes_nothing(
    folder: Path, fresh: list[Group], settings: dict[str, Any], activation_checkpointing: bool
) -> None:
    plain = gradient(folder, fresh)
    corrected = gradient(folder, fresh, activation_checkpointing=activation_checkpointing, **settings)
    assert distance(corrected, plain) < 2e-3


@pytest.mark.parametrize(
    "settings",
    [
        {"proximal": "recompute"},
        {"proximal": "recompute", "correction__kind": "truncate"},
        {"correction__kind": "mask", "correction__low": 0.9, "correction__high": 1.1},
        {"correction__kind": "sequence_mask", "correction__low": 0.99, "correction__high": 1.01},
        {"routing_replay": "r3"},
        {"routing_replay": "r3_weights"},
        {"advantage": "mean"},
        {"aggregation": "token_mean"},
        {"entropy_coefficient": 0.1},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_on_stale_rollouts_every_option_does_something(
    folder: Path, stale: list[Group], settings: dict[str, Any]
) -> None:
    assert distance(gradient(folder, stale, **settings), gradient(folder, stale)) > 1e-3


def test_with_its_own_routes_replayed_the_learner_computes_what_it_did(folder: Path, stale: list[Group]) -> None:
    """Before the first update the learner's own routes are its live ones; after it they are not."""
    own = {"routing_replay": "r2", "proximal": "recompute"}
    live = gradient(folder, stale, proximal="recompute")
    assert distance(gradient(folder, stale, **own), live) < 1e-5
    moving = {"optimizer__learning_rate": 1e-2, "minibatches": 2, "proximal": "recompute"}
    later = gradient(folder, stale, **moving)
    assert distance(gradient(folder, stale, **(moving | own)), later) > 1e-3


def test_a_recomputed_policy_is_the_denominator_of_the_ratio(folder: Path, stale: list[Group]) -> None:
    """The first update starts at ratio 1, however old the rollouts are, so nothing is clipped."""
    settings: dict[str, Any] = {"algorithm": "gmpo", "clip_low": 0.01, "clip_high": 0.01}
    clipped = make(folder, **PLAIN, **settings).train_step(stale).diagnostics["clip_fraction"]
    assert clipped > 0
    for replay in ("none", "r2", "r3"):  # which must be the same in both passes
        recomputed = make(folder, **PLAIN, **settings, proximal="recompute", routing_replay=replay).train_step(stale)
        assert recomputed.diagnostics["clip_fraction"] == 0
        assert recomputed.diagnostics["kl"] > 0


def test_a_mask_says_how_much_it_dropped(folder: Path, stale: list[Group]) -> None:
    settings: dict[str, Any] = {"correction__kind": "mask", "correction__low": 0.9, "correction__high": 1.1}
    dropped = make(folder, **PLAIN, **settings).train_step(stale).diagnostics["dropped_fraction"]
    assert 0 < dropped < 1
    assert make(folder, **PLAIN).train_step(stale).diagnostics["dropped_fraction"] == 0


def test_the_reference_is_the_model_of_the_start(folder: Path, fresh: list[Group]) -> None:
    trainer = make(folder, optimizer__learning_rate=1e-3, kl_coefficient=1e-6)
    assert trainer.train_step(fresh).diagnostics["reference_kl"] == pytest.approx(0, abs=1e-9)
    assert trainer.train_step(fresh).diagnostics["reference_kl"] > 1e-6


def test_a_strong_kl_term_keeps_the_policy_near_its_start(folder: Path, fresh: list[Group]) -> None:
    def moved(coefficient: float) -> float:
        trainer = make(folder, optimizer__learning_rate=1e-3, kl_coefficient=coefficient)
        return [trainer.train_step(fresh).diagnostics["reference_kl"] for _ in range(8)][-1]

    assert moved(10.0) < 0.5 * moved(1e-6)


def test_an_entropy_bonus_raises_the_entropy(folder: Path, fresh: list[Group]) -> None:
    def reached(coefficient: float) -> float:
        trainer = make(folder, optimizer__learning_rate=1e-3, entropy_coefficient=coefficient)
        return [trainer.train_step(fresh).diagnostics["entropy"] for _ in range(5)][-1]

    assert reached(1.0) > reached(0.0) + 0.05


def test_the_penalty_for_length_comes_before_the_advantages(folder: Path, fresh: list[Group]) -> None:
    """Equal rewards teach nothing, unless their lengths tell them apart."""
    equal = replace(fresh[0], samples=tuple(replace(sample, reward=1.0) for sample in fresh[0].samples))
    assert len({sample.completion.token_ids.size for sample in equal.samples}) > 1
    assert make(folder).drop_reason(equal) == ZERO_VARIANCE
    assert make(folder, overlong_buffer_tokens=12).drop_reason(equal) is None


def test_fixed_length_divides_by_what_a_response_may_be_long(folder: Path, fresh: list[Group]) -> None:
    short = gradient(folder, fresh, algorithm="dr_grpo", max_tokens=12)
    long = gradient(folder, fresh, algorithm="dr_grpo", max_tokens=24)
    assert distance(2 * long, short) < 1e-5


def test_subtracting_the_mismatch_leaves_what_is_published_alone(folder: Path, fresh: list[Group]) -> None:
    """With every score off by the same amount the baseline takes gamma to 1, and the mismatch is still reported."""
    off = [
        replace(
            group,
            samples=tuple(
                replace(s, trajectory=Trajectory(_with_scores_off(s.completion, 0.1))) for s in group.samples
            ),
        )
        for group in fresh
    ]
    trainer = make(folder, **PLAIN, router_shift__mismatch_baseline="subtract")
    first, second = (trainer.train_step(off).diagnostics for _ in range(2))
    assert first["gamma_mean"] == pytest.approx(math.exp(-0.1), abs=2e-3)
    trainer.step = 0  # so that the rollouts have no lag again
    second = trainer.train_step(off).diagnostics
    assert second["gamma_mean"] > 0.99
    assert second["gamma_at_lag_zero"] == pytest.approx(math.exp(-0.1), abs=2e-3)


def _with_scores_off(completion: Any, by: float) -> Any:
    trace = completion.router_trace
    return replace(completion, router_trace=replace(trace, log_scores=(trace.scores - by).astype("float16")))


@pytest.mark.parametrize(
    "settings",
    [{}, {"router_shift__mismatch_baseline": "subtract", "optimizer__schedule": "cosine", "optimizer__fused": True}],
)
def test_a_resumed_trainer_goes_on_bit_for_bit(
    folder: Path, fresh: list[Group], tmp_path: Path, settings: dict[str, Any]
) -> None:
    settings = {"optimizer__learning_rate": 1e-3, "optimizer__warmup_steps": 2, **settings}
    straight = make(folder, **settings)
    for _ in range(4):
        straight.train_step(fresh)
    first = make(folder, **settings)
    for _ in range(2):
        first.train_step(fresh)
    save(first, tmp_path, {"groups": []})
    resumed = make(folder, **settings)
    resumed.load(tmp_path)
    for _ in range(2):
        report = resumed.train_step(fresh)
    assert report.step == 4
    for name, parameter in straight._parameters.items():
        assert torch.equal(parameter, resumed._parameters[name]), name


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1, 1, 1]), ("linear", [1, 0.5, 0]), ("cosine", [1, 0.5, 0])],
)
def test_the_schedule_rises_then_falls(schedule: str, expected: list[float]) -> None:
    settings = OptimizerSettings(schedule=schedule, warmup_steps=3)
    assert [factor(step, settings, 23) for step in range(3)] == [0.25, 0.5, 0.75]
    assert [factor(step, settings, 23) for step in (3, 13, 23)] == pytest.approx(expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"routing_replay": "r3"},
        {"routing_replay": "r2", "proximal": "recompute"},
        {"freeze_router": True},
        {"router_precision": "float64"},
    ],
)
def test_what_is_of_routers_needs_some(tmp_path: Path, settings: dict[str, Any]) -> None:
    dense = save_model(tmp_path, "qwen3_dense")
    with pytest.raises(PreconditionError, match="dense or unknown"):
        make(dense, algorithm="gmpo", **settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"routing_replay": "r2"}, "use proximal recompute"),
        ({"correction__kind": "truncate"}, "would weigh by the ratio twice"),
        (
            {"algorithm": "gmpo", "router_shift__mismatch_baseline": "subtract"},
            "mismatch_baseline corrects the router shift factor",
        ),
        ({"algorithm": "rspo", "router_shift__enabled": False}, "use gmpo"),
        ({"router_precision": "float32"}, "leave it out, or use float64"),
    ],
)
def test_combinations_without_sense_are_refused_with_the_reason(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        learner_settings(**settings)


def test_lora_trains_adapters_and_publishes_whole_weights(folder: Path, fresh: list[Group], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"optimizer__learning_rate": 1e-2, "lora": {"rank": 4}, "kl_coefficient": 1e-6}
    trainer = make(folder, **settings)
    assert all("lora" in name for name in trainer._parameters)
    trainer.train_step(fresh)
    (tmp_path / "checkpoint").mkdir()
    save(trainer, tmp_path / "checkpoint", {})
    resumed = make(folder, **settings)
    resumed.load(tmp_path / "checkpoint")
    for each in (trainer, resumed):
        # With its adapters off, the policy is its own reference.
        assert each.train_step(fresh).diagnostics["reference_kl"] > 1e-6
    trainer.export_weights(tmp_path / "trained")
    resumed.export_weights(tmp_path / "resumed")
    start, trained = load_file(folder / "model.safetensors"), load_file(tmp_path / "trained" / "model.safetensors")
    again = load_file(tmp_path / "resumed" / "model.safetensors")
    assert start.keys() == trained.keys()
    changed = {name for name in start if not torch.equal(start[name], trained[name])}
    assert {name for name in changed if "mlp.gate." in name or "norm" in name or "embed" in name} == set()
    assert any("experts" in name for name in changed)
    assert any("q_proj" in name for name in changed)
    assert all(torch.equal(trained[name], again[name]) for name in start)


def test_a_checkpoint_of_other_adapters_is_refused(folder: Path, fresh: list[Group], tmp_path: Path) -> None:
    trainer = make(folder, lora={"rank": 4})
    trainer.train_step(fresh)
    save(trainer, tmp_path, {})
    with pytest.raises(InvalidInputError, match=r"learner\.lora is .*'alpha': 32"):
        make(folder, lora={"rank": 4, "alpha": 32}).load(tmp_path)
