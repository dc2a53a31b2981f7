"""Objectives and their gradients against textbook loops in plain Python floats."""

import math
from collections.abc import Callable
from itertools import product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from services.learner.advantages import ZERO_VARIANCE, drop_reason, group_advantages
from services.learner.objectives import OBJECTIVES, Clipping, PolicyBatch
from services.learner.settings import Application, LearnerSettings

Floats = NDArray[np.float64]
RESPONSES, LONGEST = 8, 11


def reference_grpo(log_w: Floats, log_gamma: Floats, advantage: float, clipping: Clipping) -> float:
    total = 0.0
    for ratio, gamma in zip(np.exp(log_w), np.exp(log_gamma), strict=True):
        factor = 1.0
        if clipping.apply == "before_clip":
            ratio = ratio * gamma
        else:
            factor = gamma
        limited = min(max(ratio, 1 - clipping.low), 1 + clipping.high)
        total += factor * min(ratio * advantage, limited * advantage)
    return -total / len(log_w)


def reference_gmpo(log_w: Floats, log_gamma: Floats, advantage: float, clipping: Clipping) -> float:
    sign = math.copysign(1.0, advantage) if advantage else 0.0
    exponent = 0.0
    for x, shift in zip(log_w, log_gamma, strict=True):
        if clipping.apply == "before_clip":
            x = x + shift
        exponent += sign * min(sign * x, sign * min(max(x, -clipping.low), clipping.high))
        if clipping.apply == "after_clip":
            exponent += shift
    return -math.exp(exponent / len(log_w)) * advantage


REFERENCES: dict[str, Callable[[Floats, Floats, float, Clipping], float]] = {
    "grpo": reference_grpo,
    "gmpo": reference_gmpo,
    "rspo": reference_gmpo,
}


class Case:
    """Responses of different lengths with ratios well inside and well outside of the clip range."""

    def __init__(self, seed: int, with_gamma: bool) -> None:
        rng = np.random.default_rng(seed)
        self.lengths = rng.integers(1, LONGEST + 1, size=RESPONSES)
        self.lengths[0] = LONGEST
        self.behaviour = -rng.exponential(1.0, size=(RESPONSES, LONGEST))
        self.log_ratio = rng.normal(scale=0.5, size=(RESPONSES, LONGEST))
        self.advantages = rng.normal(size=RESPONSES)
        self.advantages[1] = 0.0
        self.with_gamma = with_gamma
        self.log_gamma = rng.uniform(math.log(0.8), 0, size=(RESPONSES, LONGEST)) * with_gamma

    def batch(self, dtype: torch.dtype) -> PolicyBatch:
        mask = torch.arange(LONGEST) < torch.tensor(self.lengths)[:, None]
        return PolicyBatch(
            logprobs=torch.tensor(self.behaviour + self.log_ratio, dtype=dtype).requires_grad_(),
            behaviour_logprobs=torch.tensor(self.behaviour, dtype=dtype),
            advantages=torch.tensor(self.advantages, dtype=dtype),
            mask=mask,
            log_gamma=torch.tensor(self.log_gamma, dtype=dtype) if self.with_gamma else None,
        )

    def expected(self, algorithm: str, clipping: Clipping, log_ratio: Floats) -> Floats:
        return np.array(
            [
                REFERENCES[algorithm](log_ratio[i, :n], self.log_gamma[i, :n], float(self.advantages[i]), clipping)
                for i, n in enumerate(self.lengths)
            ]
        )

    def expected_gradient(self, algorithm: str, clipping: Clipping) -> Floats:
        """Of the sum over responses, by central differences."""
        gradient = np.zeros((RESPONSES, LONGEST))
        for i, t in product(range(RESPONSES), range(LONGEST)):
            nudge = np.zeros((RESPONSES, LONGEST))
            nudge[i, t] = 1e-5
            above = self.expected(algorithm, clipping, self.log_ratio + nudge)[i]
            below = self.expected(algorithm, clipping, self.log_ratio - nudge)[i]
            gradient[i, t] = (above - below) / 2e-5
        return gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("apply", ["before_clip", "after_clip"])
@pytest.mark.parametrize("with_gamma", [False, True])
@pytest.mark.parametrize("algorithm", ["grpo", "gmpo", "rspo"])
def test_loss_and_gradient_equal_the_definition(
    algorithm: str, with_gamma: bool, apply: Application, dtype: torch.dtype
) -> None:
    case = Case(seed=1, with_gamma=with_gamma)
    clipping = Clipping(0.2, 0.28, apply)
    batch = case.batch(dtype)
    result = OBJECTIVES[algorithm](batch, clipping)
    (gradient,) = torch.autograd.grad(result.loss.sum(), batch.logprobs)
    np.testing.assert_allclose(
        result.loss.detach().numpy(), case.expected(algorithm, clipping, case.log_ratio), rtol=1e-6, atol=1e-6
    )
    np.testing.assert_allclose(gradient.numpy(), case.expected_gradient(algorithm, clipping), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["grpo", "gmpo"])
def test_clipped_tokens_are_those_without_gradient(algorithm: str) -> None:
    case = Case(seed=2, with_gamma=True)
    batch = case.batch(torch.float32)
    result = OBJECTIVES[algorithm](batch, Clipping(0.2, 0.2, "before_clip"))
    (gradient,) = torch.autograd.grad(result.loss.sum(), batch.logprobs)
    informative = batch.mask & (batch.advantages != 0)[:, None]
    assert result.clipped.any()
    assert torch.equal(result.clipped[informative], (gradient == 0)[informative])
    assert not result.clipped[~informative].any()


@pytest.mark.parametrize("algorithm", ["grpo", "gmpo"])
def test_gamma_changes_what_is_clipped_only_before_the_clip(algorithm: str) -> None:
    plain, shifted = Case(seed=3, with_gamma=False), Case(seed=3, with_gamma=True)
    before, after = Clipping(0.2, 0.2, "before_clip"), Clipping(0.2, 0.2, "after_clip")
    objective = OBJECTIVES[algorithm]
    unshifted = objective(plain.batch(torch.float32), before).clipped
    assert torch.equal(objective(shifted.batch(torch.float32), after).clipped, unshifted)
    assert not torch.equal(objective(shifted.batch(torch.float32), before).clipped, unshifted)


@pytest.mark.parametrize("padding", [5.0, -60.0, math.inf])
@pytest.mark.parametrize("algorithm", ["grpo", "gmpo"])
def test_padding_has_no_say(algorithm: str, padding: float) -> None:
    clipping = Clipping(0.2, 0.2, "before_clip")
    case = Case(seed=4, with_gamma=True)
    clean, dirty = case.batch(torch.float32), case.batch(torch.float32)
    with torch.no_grad():
        dirty.logprobs.masked_fill_(~dirty.mask, padding)
    losses = [OBJECTIVES[algorithm](batch, clipping).loss for batch in (clean, dirty)]
    gradients = [
        torch.autograd.grad(loss.sum(), batch.logprobs)[0] for loss, batch in zip(losses, (clean, dirty), strict=True)
    ]
    assert torch.equal(*losses)
    assert torch.equal(*gradients)
    assert not gradients[1][~dirty.mask].any()


def test_one_clip_range_is_that_of_the_paper() -> None:
    """arXiv 2507.20673 clips sgn(A) log w."""
    case, low_is_high = Case(seed=6, with_gamma=False), 0.4
    result = OBJECTIVES["gmpo"](case.batch(torch.float64), Clipping(low_is_high, low_is_high, "before_clip"))
    for i, (n, advantage) in enumerate(zip(case.lengths, case.advantages, strict=True)):
        signed = np.sign(advantage) * case.log_ratio[i, :n]
        terms = np.sign(advantage) * np.minimum(signed, np.clip(signed, -low_is_high, low_is_high))
        assert result.loss[i].item() == pytest.approx(-math.exp(terms.mean()) * advantage)


def test_on_policy_every_objective_is_the_plain_policy_gradient() -> None:
    """At w = 1 and gamma = 1 the gradient of each is -A / |y| on every token."""
    case = Case(seed=5, with_gamma=False)
    case.log_ratio[:] = 0
    for objective in OBJECTIVES.values():
        batch = case.batch(torch.float64)
        loss = objective(batch, Clipping(0.2, 0.2, "before_clip")).loss
        (gradient,) = torch.autograd.grad(loss.sum(), batch.logprobs)
        expected = -(batch.advantages / batch.mask.sum(1))[:, None] * batch.mask
        torch.testing.assert_close(gradient, expected)


def test_advantages_are_standard_scores_within_the_group() -> None:
    rewards = [0.0, 1.0, 0.1, 0.1, 1.0]
    mean = sum(rewards) / 5
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / 5)
    np.testing.assert_allclose(group_advantages(rewards), [(r - mean) / deviation for r in rewards], rtol=1e-6)
    assert drop_reason(rewards) is None


def test_equal_rewards_have_nothing_to_teach_even_where_their_mean_rounds() -> None:
    rewards = [0.1] * 3
    assert np.std(rewards) > 0  # why the standard deviation cannot decide
    assert drop_reason(rewards) == ZERO_VARIANCE
    assert not group_advantages(rewards).any()


@pytest.mark.parametrize(
    ("settings", "uses_shift", "clip_range"),
    [
        ({}, True, (0.4, 0.4)),
        ({"algorithm": "gmpo"}, False, (0.4, 0.4)),
        ({"algorithm": "grpo"}, False, (0.2, 0.2)),
        ({"algorithm": "grpo", "router_shift": True, "clip_high": 0.28}, True, (0.2, 0.28)),
    ],
)
def test_an_algorithm_brings_its_own_defaults(
    settings: dict[str, object], uses_shift: bool, clip_range: tuple[float, float]
) -> None:
    made = LearnerSettings.model_validate(settings)
    assert made.uses_router_shift is uses_shift
    assert made.clip_range == clip_range


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"router_shift": False}, "use gmpo"),
        ({"algorithm": "grpo", "clip_low": 1.5}, "below 1"),
        ({"gamma_min": 0.0}, "gamma_min"),
        ({"learning_rat": 1e-4}, "learning_rat"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        LearnerSettings.model_validate(settings)
