"""The trainer's updates against loops, what it skips, and what leaves a step as it is."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from routershift.trajectory import Trajectory
from services.learner.data.batch import Group, Sample
from services.learner.monitoring.report import NON_FINITE
from shared.errors import PreconditionError
from tests.support.models import save_model
from tests.support.rollouts import load, random_groups
from tests.support.training import PLAIN, gradients, make, poisoned, weights


def reference_loss(model: PreTrainedModel, groups: Sequence[Group], gamma_min: float | None) -> torch.Tensor:
    """The loss of GMPO, or of RSPO with a gamma_min: one response at a time, from full logits."""
    losses = []
    for group in groups:
        rewards = np.array([sample.reward for sample in group.samples])
        for sample, advantage in zip(group.samples, (rewards - rewards.mean()) / rewards.std(), strict=True):
            tokens = torch.tensor(sample.completion.token_ids, dtype=torch.int64)
            ids = torch.cat((torch.tensor(sample.prompt_ids, dtype=torch.int64), tokens))[None]
            output = model(ids, output_router_logits=True)
            at = slice(sample.prompt_ids.size - 1, -1)
            logprobs = output.logits[0, at].log_softmax(-1).gather(1, tokens[:, None])[:, 0]
            log_w = logprobs - torch.tensor(sample.completion.logprobs)
            trace = sample.completion.router_trace
            if gamma_min is not None and trace is not None:
                distances = [
                    (logits.detach()[at].log_softmax(-1).gather(1, torch.tensor(trace.expert_ids[:, i].astype(int)))
                     - torch.tensor(trace.scores[:, i]).float()).abs().mean(-1)
                    for i, logits in enumerate(output.router_logits)
                ]  # fmt: skip
                gamma = torch.exp(-torch.stack(distances).mean(0))
                log_w = log_w + gamma.clamp(min=gamma_min).log()
            sign = math.copysign(1.0, advantage)
            clipped = torch.minimum(sign * log_w, (sign * log_w).clamp(-0.4, 0.4))
            losses.append(-torch.exp(sign * clipped.mean()) * advantage)
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("algorithm", "gamma_min"), [("gmpo", None), ("rspo", 0.8), ("rspo", 0.95)])
def test_loss_and_gradient_of_a_step_equal_the_definition(
    folder: Path, stale: list[Group], algorithm: str, gamma_min: float | None
) -> None:
    trainer = make(folder, algorithm=algorithm, router_shift__gamma_min=gamma_min or 0.8, **PLAIN)
    report = trainer.train_step(stale)
    model = load(folder)
    expected = reference_loss(model, stale, gamma_min)
    torch.autograd.backward(expected)
    assert report.diagnostics["loss"] == pytest.approx(expected.item(), abs=1e-6)
    for name, gradient in gradients(trainer).items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("changes", [{"micro_batch_tokens": 1}, {"micro_batch_tokens": 100}])
def test_a_batch_is_the_same_however_it_is_cut(folder: Path, stale: list[Group], changes: dict[str, int]) -> None:
    whole, cut = make(folder, **PLAIN), make(folder, **PLAIN, **changes)
    reports = [trainer.train_step(stale) for trainer in (whole, cut)]
    assert reports[0].diagnostics == pytest.approx(dict(reports[1].diagnostics), rel=1e-5, abs=1e-6)
    assert reports[0].diagnostics["loss"] == pytest.approx(reports[1].diagnostics["loss"], abs=1e-6)
    for name, gradient in gradients(cut).items():
        torch.testing.assert_close(gradient, gradients(whole)[name], rtol=1e-5, atol=1e-6)


def test_activation_checkpointing_changes_memory_and_nothing_else(folder: Path, stale: list[Group]) -> None:
    plain, recomputed = make(folder, **PLAIN), make(folder, activation_checkpointing=True, **PLAIN)
    reports = [trainer.train_step(stale) for trainer in (plain, recomputed)]
    assert reports[0].diagnostics == pytest.approx(dict(reports[1].diagnostics), abs=1e-6)
    for name, gradient in gradients(recomputed).items():
        torch.testing.assert_close(gradient, gradients(plain)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["rspo", "gmpo", "grpo"])
def test_learning_makes_rewarded_responses_likelier(folder: Path, fresh: list[Group], algorithm: str) -> None:
    trainer = make(folder, algorithm=algorithm, optimizer__learning_rate=1e-4)
    losses = [trainer.train_step(fresh).diagnostics["loss"] for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    assert trainer.step == 3


def test_temperature_is_that_of_the_rollouts(folder: Path) -> None:
    """Recorded at temperature 2; the learner's log-probs agree with it at 2 and not at 1."""
    groups = random_groups(load(folder), groups=2, samples=3)
    model = load(folder)

    def at_two(sample: Sample) -> Sample:
        tokens = torch.tensor(sample.completion.token_ids, dtype=torch.int64)
        ids = torch.cat((torch.tensor(sample.prompt_ids, dtype=torch.int64), tokens))[None]
        with torch.no_grad():
            logits = model(ids).logits[0, sample.prompt_ids.size - 1 : -1]
        logprobs = (logits / 2).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        return replace(sample, trajectory=Trajectory(replace(sample.completion, logprobs=logprobs.numpy())))

    groups = [replace(group, samples=tuple(at_two(s) for s in group.samples)) for group in groups]
    assert make(folder, temperature=2.0, **PLAIN).train_step(groups).diagnostics["kl"] == pytest.approx(0, abs=1e-6)
    assert make(folder, **PLAIN).train_step(groups).diagnostics["kl"] > 0.01


def test_warm_up_raises_the_learning_rate_step_by_step(folder: Path, fresh: list[Group], tmp_path: Path) -> None:
    """AdamW's first update moves each weight by the learning rate."""
    slow, fast = (
        make(folder, optimizer__learning_rate=1e-3, optimizer__warmup_steps=9),
        make(folder, optimizer__learning_rate=1e-3),
    )
    before = weights(slow, tmp_path / "before")
    moved: list[float] = []
    for trainer in (slow, fast):
        trainer.train_step(fresh)
        after = weights(trainer, tmp_path / str(len(moved)))
        moved.append(max(float((after[name] - before[name]).abs().max()) for name in before))
    assert moved == pytest.approx([1e-4, 1e-3], rel=0.01)


def test_epochs_and_minibatches_multiply_updates_and_stay_one_step(folder: Path, fresh: list[Group]) -> None:
    trainer = make(folder, epochs=3, minibatches=2, **PLAIN)
    trainer.train_step(fresh)
    updates = {int(state["step"]) for state in trainer._optimizer.state.values()}
    assert updates == {6}
    assert trainer.step == 1


def test_a_batch_that_is_not_finite_is_skipped_and_changes_nothing(
    folder: Path, fresh: list[Group], tmp_path: Path
) -> None:
    trainer = make(folder, optimizer__learning_rate=1e-3)
    trainer.train_step(fresh)
    bad = poisoned(trainer, fresh[0])
    before = weights(trainer, tmp_path / "before")
    report = trainer.train_step([bad])
    after = weights(trainer, tmp_path / "after")
    assert report.skipped == NON_FINITE
    assert not math.isfinite(report.diagnostics["loss"])
    assert report.step == trainer.step == 1
    assert all(torch.equal(after[name].nan_to_num(), before[name].nan_to_num()) for name in before)
    assert trainer.train_step(fresh).skipped is None
    assert trainer.step == 2


def test_one_minibatch_that_is_not_finite_costs_its_own_update_only(folder: Path, fresh: list[Group]) -> None:
    trainer = make(folder, optimizer__learning_rate=1e-3, minibatches=4)
    report = trainer.train_step([poisoned(trainer, fresh[0]), *fresh[1:]])
    assert report.skipped is None
    assert trainer.step == 1
    assert {int(state["step"]) for state in trainer._optimizer.state.values()} == {3}


def test_router_shift_needs_routers_and_gmpo_does_not(tmp_path: Path) -> None:
    dense = save_model(tmp_path, "qwen3_dense")
    with pytest.raises(PreconditionError, match="'qwen3' is dense or unknown"):
        make(dense)
    trainer = make(dense, algorithm="gmpo", optimizer__learning_rate=1e-4)
    assert trainer.layout is None
    groups = random_groups(load(dense), groups=2, samples=3)
    for group in groups:
        trainer.check(group)
    assert "gamma_mean" not in trainer.train_step(groups).diagnostics


def test_noise_of_the_training_forward_is_off(tmp_path: Path) -> None:
    """Dropout in a model's config would look like policy shift."""
    folder = save_model(tmp_path, attention_dropout=0.5)
    groups = random_groups(load(folder), groups=2, samples=3)
    assert make(folder, **PLAIN).train_step(groups).diagnostics["kl"] == pytest.approx(0, abs=1e-6)


def test_equal_seeds_train_equally_and_others_shuffle_otherwise(
    folder: Path, stale: list[Group], tmp_path: Path
) -> None:
    trained = []
    for i, seed in enumerate((1, 1, 2)):
        trainer = make(folder, seed=seed, optimizer__learning_rate=1e-3, minibatches=2)
        trainer.train_step(stale)
        trained.append(weights(trainer, tmp_path / str(i)))
    first, same, other = trained
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
