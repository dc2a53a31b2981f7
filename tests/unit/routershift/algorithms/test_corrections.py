"""Corrections on numbers that can be checked by hand; with objectives they are in `test_objectives`."""

import math

import pytest
import torch
from torch import Tensor

from routershift.algorithms.choices import CORRECTION_HIGH, CorrectionKind
from routershift.algorithms.corrections import Correction, Rule, correct
from routershift.algorithms.objectives.base import Clipping, PolicyBatch
from routershift.algorithms.objectives.registry import objectives

RHO = [[0.4, 1.0, 2.5, 9.0], [0.5, 5.0, math.nan, math.nan]]
MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])
MEANS = [(0.4 * 1.0 * 2.5 * 9.0) ** (1 / 4), math.sqrt(2.5)]


def corrected(
    kind: CorrectionKind,
    weighs: bool = True,
    by_sequence: bool = False,
    low: float = 0.5,
    high: float | None = None,
) -> Correction:
    rule = Rule(kind, low, high or CORRECTION_HIGH[kind], weighs, by_sequence)
    return correct(torch.tensor(RHO).log(), MASK, rule)


def assert_is(correction: Correction, weights: list[list[float]], kept: Tensor) -> None:
    torch.testing.assert_close(correction.weights, torch.tensor(weights))
    assert torch.equal(correction.kept, kept)


def test_no_correction_weighs_all_response_tokens_the_same() -> None:
    for by_sequence in (False, True):
        assert_is(corrected("none", by_sequence=by_sequence), [[1.0] * 4, [1.0, 1.0, 0.0, 0.0]], MASK)


def test_truncation_bounds_rho_from_above() -> None:
    assert_is(corrected("truncate"), [[0.4, 1.0, 2.0, 2.0], [0.5, 2.0, 0.0, 0.0]], MASK)
    bounded = corrected("truncate", by_sequence=True, high=1.6)
    assert_is(bounded, [[1.6] * 4, [MEANS[1], MEANS[1], 0.0, 0.0]], MASK)


def test_a_mask_drops_tokens_outside_of_its_bounds() -> None:
    kept = torch.tensor([[False, True, True, False], [True, True, False, False]])
    assert_is(corrected("mask"), [[0.0, 1.0, 2.5, 0.0], [0.5, 5.0, 0.0, 0.0]], kept)
    assert_is(corrected("mask", weighs=False), [[0.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]], kept)


def test_under_one_ratio_a_response_a_dropped_token_counts_as_one() -> None:
    kept = torch.tensor([[False, True, True, False], [True, True, False, False]])
    weight = 2.5 ** (1 / 4)
    assert_is(corrected("mask", by_sequence=True), [[weight] * 4, [MEANS[1], MEANS[1], 0.0, 0.0]], kept)
    assert_is(corrected("mask", weighs=False, by_sequence=True), [[1.0] * 4, [1.0, 1.0, 0.0, 0.0]], kept)


@pytest.mark.parametrize("by_sequence", [False, True])
def test_a_sequence_mask_drops_responses_by_their_geometric_mean(by_sequence: bool) -> None:
    assert MEANS[0] > 1.6 > MEANS[1]
    kept = torch.tensor([[False] * 4, [True, True, False, False]])
    found = corrected("sequence_mask", by_sequence=by_sequence, high=1.6)
    assert_is(found, [[0.0] * 4, [MEANS[1], MEANS[1], 0.0, 0.0]], kept)
    found = corrected("sequence_mask", weighs=False, by_sequence=by_sequence, high=1.6)
    assert_is(found, [[0.0] * 4, [1.0, 1.0, 0.0, 0.0]], kept)
    low = corrected("sequence_mask", by_sequence=by_sequence, low=MEANS[1] + 0.01)
    assert torch.equal(low.kept, torch.tensor([[True] * 4, [False] * 4]))


@pytest.mark.parametrize("kind", ["truncate", "mask", "sequence_mask"])
@pytest.mark.parametrize("log_rho", [-200.0, 200.0])
def test_far_rho_gives_finite_weights(kind: CorrectionKind, log_rho: float) -> None:
    rule = Rule(kind, 0.5, CORRECTION_HIGH[kind], weighs=True, by_sequence=False)
    weights = correct(torch.full((1, 3), log_rho), torch.ones(1, 3, dtype=torch.bool), rule).weights
    expected = 2.0 if kind == "truncate" and log_rho > 0 else 0.0
    assert torch.allclose(weights, torch.full((1, 3), expected))


@pytest.mark.parametrize("kind", ["mask", "sequence_mask"])
@pytest.mark.parametrize("objective", list(objectives()))
def test_responses_that_are_dropped_whole_teach_nothing(objective: str, kind: CorrectionKind) -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-0.5, 7.0, 7.0]]).requires_grad_()
    old = torch.tensor([[-9.0, -9.0, -9.0], [-9.0, -7.0, -7.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    rule = Rule(kind, 0.5, CORRECTION_HIGH[kind], weighs=True, by_sequence=objective in ("gspo", "gmpo"))
    correction = correct(logprobs - old, mask, rule)
    assert not correction.kept.any()
    batch = PolicyBatch(logprobs, old, torch.tensor([1.0, -1.0]), mask, kept=correction.kept)
    result = objectives()[objective]()(batch, Clipping(0.2, 0.2, "before_clip"))
    loss = (correction.weights * result.terms).sum()
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert torch.isfinite(loss)
    assert torch.equal(gradient, torch.zeros_like(gradient))
    assert not result.clipped.any()
