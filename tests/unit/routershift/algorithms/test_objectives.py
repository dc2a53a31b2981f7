"""Objectives and their gradients against `objective_reference`, and what holds for all of them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from routershift.algorithms.aggregation import Totals, token_weights
from routershift.algorithms.choices import Aggregation, Application, CorrectionKind, Proximal
from routershift.algorithms.objectives.base import Clipping, PolicyBatch
from routershift.algorithms.objectives.gmpo import Gmpo
from routershift.algorithms.objectives.registry import objectives
from routershift.algorithms.regularizers import entropy_terms, kl_terms
from tests.support import objective_reference as reference
from tests.support.objective_cases import LONGEST, RESPONSES, draw, gradient_of, recipe, run
from tests.support.objective_reference import Response

EVERY: tuple[str, ...] = ("grpo", "gspo", "gmpo", "cispo", "dppo", "dppo_kl", "reinforce")
CLIPPING = EVERY[:4]
WITH_RATIO = EVERY[:6]
AGGREGATIONS: tuple[Aggregation, ...] = ("response_mean", "token_mean", "fixed_length")
CORRECTIONS: tuple[CorrectionKind, ...] = ("none", "truncate", "mask", "sequence_mask")
# All but what is refused: truncation beside a ratio that holds rho already.
CORRECTED: list[tuple[str, Proximal, CorrectionKind]] = [
    (objective, proximal, correction)
    for objective in EVERY
    for proximal in get_args(Proximal)
    for correction in CORRECTIONS
    if (proximal, correction) != ("behaviour", "truncate") or objective == "reinforce"
]


def assert_close(found: Tensor, expected: Sequence[float], tolerance: float = 1e-6) -> None:
    np.testing.assert_allclose(found.detach().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("objective", "proximal", "correction"), CORRECTED)
@pytest.mark.parametrize(("shifted", "apply"), [(False, "before_clip"), (True, "before_clip"), (True, "after_clip")])
def test_loss_and_gradient_equal_the_definition(
    objective: str, proximal: Proximal, correction: CorrectionKind, shifted: bool, apply: Application
) -> None:
    case, chosen = draw(1, shifted), recipe(objective, proximal, correction, apply)
    batch, result, corrected = run(case, chosen)
    losses = (corrected.weights * result.terms).sum(dim=1)
    gradient = gradient_of(losses.sum(), batch)
    responses = case.responses()
    assert_close(losses, [reference.loss(r, chosen) for r in responses])
    assert_close(gradient[case.mask], [g for r in responses for g in reference.gradient(r, chosen)])
    assert not gradient[~case.mask].any()
    if correction.endswith("mask"):
        assert corrected.kept.any(dim=1).any()
        assert not corrected.kept[case.mask].all()


@pytest.mark.parametrize("objective", WITH_RATIO)
def test_the_case_reaches_both_sides_of_every_bound(objective: str) -> None:
    case = draw(1)
    batch, result, _ = run(case, recipe(objective))
    gradient = gradient_of(result.terms.sum(), batch)
    for sign in (-1, 1):
        tokens = case.mask & (case.advantages.sign() == sign)[:, None]
        assert result.clipped[tokens].any()
        assert not result.clipped[tokens].all()
        assert gradient[tokens].any()


@pytest.mark.parametrize("objective", ["grpo", "gspo", "gmpo", "dppo", "dppo_kl"])
def test_clipped_tokens_are_those_without_gradient(objective: str) -> None:
    case = draw(2)
    batch, result, _ = run(case, recipe(objective))
    gradient = gradient_of(result.terms.sum(), batch)
    informative = case.mask & (case.advantages != 0)[:, None]
    assert result.clipped.any()
    assert torch.equal(result.clipped[informative], (gradient == 0)[informative])
    assert not result.clipped[~informative].any()


def test_cispo_limits_weights_and_takes_no_gradient_away() -> None:
    case = draw(2)
    batch, result, _ = run(case, recipe("cispo"))
    gradient = gradient_of(result.terms.sum(), batch)
    assert case.log_gamma is not None
    ratio = (case.live - case.behaviour + case.log_gamma).exp()
    assert torch.equal(result.clipped, case.mask & ((ratio < 0.8) | (ratio > 1.28)))
    assert gradient[case.mask & (case.advantages != 0)[:, None]].all()


@pytest.mark.parametrize("correction", ["mask", "sequence_mask"])
@pytest.mark.parametrize("objective", EVERY)
def test_dropped_tokens_are_neither_clipped_nor_learnt_from(objective: str, correction: CorrectionKind) -> None:
    case = draw(3)
    batch, result, corrected = run(case, recipe(objective, correction=correction))
    gradient = gradient_of((corrected.weights * result.terms).sum(), batch)
    assert (case.mask & ~corrected.kept).any()
    assert not gradient[~corrected.kept].any()
    assert not result.clipped[~corrected.kept].any()


@pytest.mark.parametrize("objective", CLIPPING)
def test_gamma_changes_what_is_clipped_only_before_the_clip(objective: str) -> None:
    _, plain, _ = run(draw(7, shifted=False), recipe(objective))
    _, before, _ = run(draw(7, shifted=True), recipe(objective))
    _, after, _ = run(draw(7, shifted=True), recipe(objective, apply="after_clip"))
    assert torch.equal(after.clipped, plain.clipped)
    assert not torch.equal(before.clipped, plain.clipped)


@pytest.mark.parametrize("padding", [5.0, -60.0, math.inf, math.nan])
@pytest.mark.parametrize("objective", EVERY)
def test_padding_has_no_say(objective: str, padding: float) -> None:
    found = []
    for garbage in (0.0, padding):
        chosen = recipe(objective, "recompute", "mask")
        batch, result, corrected = run(draw(4, padding=garbage), chosen)
        assert not result.terms[~batch.mask].any()
        loss = (corrected.weights * result.terms).sum()
        found.append((loss.detach(), gradient_of(loss, batch), result.terms.detach(), result.clipped))
    for clean, dirty in zip(*found, strict=True):
        assert torch.equal(clean, dirty)


@pytest.mark.parametrize("apply", ["before_clip", "after_clip"])
@pytest.mark.parametrize("objective", EVERY)
def test_gradient_flows_through_the_live_logprobs_alone(objective: str, apply: Application) -> None:
    case = draw(5, padding=0.0)
    assert case.log_gamma is not None
    constants = [case.log_gamma, case.behaviour, case.proximal]
    for constant in constants:
        constant.requires_grad_()
    batch, result, corrected = run(case, recipe(objective, "recompute", "truncate", apply))
    assert not corrected.weights.requires_grad
    gradients = torch.autograd.grad(result.terms.sum(), [batch.logprobs, *constants], allow_unused=True)
    assert gradients[0].any()
    assert all(gradient is None for gradient in gradients[1:])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("objective", EVERY)
def test_on_policy_every_objective_is_the_plain_policy_gradient(objective: str, aggregation: Aggregation) -> None:
    """At w = 1 and without router shift the gradient of each is minus its weight times A, on every token."""
    case = draw(5, shifted=False, spread=0.0)
    batch, result, _ = run(case, recipe(objective))
    weights = token_weights(case.mask, aggregation, totals_of(case.mask))
    expected = -weights * case.advantages[:, None]
    torch.testing.assert_close(gradient_of((weights * result.terms).sum(), batch), expected, rtol=1e-5, atol=0)
    assert not result.clipped.any()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("objective", EVERY)
def test_one_big_batch_is_the_sum_of_its_micro_batches(objective: str, aggregation: Aggregation) -> None:
    case, chosen = draw(6), recipe(objective, "recompute", "mask")
    totals = totals_of(case.mask)
    batch, result, corrected = run(case, chosen)
    whole = (token_weights(case.mask, aggregation, totals) * corrected.weights * result.terms).sum()
    gradient = gradient_of(whole, batch)
    rng = np.random.default_rng(6)
    for cuts in (1, 3, RESPONSES - 1):
        shares, gathered = torch.zeros(()), torch.zeros_like(gradient)
        at = np.sort(rng.choice(np.arange(1, RESPONSES), size=cuts, replace=False))
        for rows in np.split(rng.permutation(RESPONSES), at):
            part = case.part(rows)
            batch, result, corrected = run(part, chosen)
            share = (token_weights(part.mask, aggregation, totals) * corrected.weights * result.terms).sum()
            gathered[rows, : part.mask.shape[1]] = gradient_of(share, batch)
            shares += share.detach()
        torch.testing.assert_close(shares, whole.detach(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gathered, gradient, rtol=1e-6, atol=1e-9)


def test_token_weights_are_those_of_the_papers() -> None:
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    totals = Totals(responses=5, tokens=40, max_response_tokens=8)
    expected = {
        "response_mean": [[1 / 15] * 3 + [0], [1 / 5, 0, 0, 0]],
        "token_mean": [[1 / 40] * 3 + [0], [1 / 40, 0, 0, 0]],
        "fixed_length": [[1 / 40] * 3 + [0], [1 / 40, 0, 0, 0]],
    }
    for aggregation in AGGREGATIONS:
        torch.testing.assert_close(token_weights(mask, aggregation, totals), torch.tensor(expected[aggregation]))
    assert token_weights(mask, "fixed_length", replace(totals, max_response_tokens=4)).sum() == pytest.approx(4 / 20)
    assert token_weights(mask, "token_mean", replace(totals, tokens=20)).sum() == pytest.approx(4 / 20)


@pytest.mark.parametrize("apply", ["before_clip", "after_clip"])
@pytest.mark.parametrize("objective", EVERY)
def test_far_ratios_neither_overflow_nor_become_no_number(objective: str, apply: Application) -> None:
    """One token a response: exact up to |log w| = 60, finite beyond it."""
    log_w = (-200.0, -60.0, 60.0, 200.0)
    drawn = list(product(log_w, (-1.5, 0.0, 1.5)))
    logprobs = torch.tensor([[w] for w, _ in drawn]).requires_grad_()
    advantages = torch.tensor([a for _, a in drawn])
    old, mask, log_gamma = torch.zeros(12, 1), torch.ones(12, 1, dtype=torch.bool), torch.full((12, 1), math.log(0.9))
    batch = PolicyBatch(logprobs, old, advantages, mask, log_gamma)
    chosen = recipe(objective, apply=apply)
    result = objectives()[objective]()(batch, Clipping(chosen.low, chosen.high, apply))
    gradient = gradient_of(result.terms.sum(), batch)
    assert torch.isfinite(result.terms).all()
    assert torch.isfinite(gradient).all()
    assert not gradient[advantages == 0].any()
    for i, (w, advantage) in enumerate(drawn):
        if abs(w) == 60:
            response = Response((w,), (w,), (0.0,), (0.0,), (log_gamma[i].double().exp().item(),), advantage)
            assert_close(result.terms[i], reference.terms(response, chosen, [True]), tolerance=1e-5)
            assert_close(gradient[i], reference.gradient(response, chosen), tolerance=1e-5)


def test_one_clip_range_of_gmpo_is_that_of_the_paper() -> None:
    """arXiv 2507.20673 clips sgn(A) log w."""
    case = draw(6, shifted=False)
    terms = Gmpo()(case.batch(recipe("gmpo")), Clipping(0.4, 0.4, "before_clip")).terms
    for i, (row, advantage) in enumerate(zip(case.mask, case.advantages.tolist(), strict=True)):
        signed = np.sign(advantage) * (case.live - case.behaviour)[i, row].double().numpy()
        logs = np.sign(advantage) * np.minimum(signed, np.clip(signed, -0.4, 0.4))
        assert terms[i, 0].item() == pytest.approx(-math.exp(logs.mean()) * advantage, rel=1e-6)


@pytest.mark.parametrize("apply", ["before_clip", "after_clip"])
@pytest.mark.parametrize("objective", ["dppo", "dppo_kl"])
def test_gamma_weighs_what_the_mask_of_dppo_left(objective: str, apply: Application) -> None:
    _, plain, _ = run(draw(7, shifted=False), recipe(objective))
    case = draw(7, shifted=True)
    _, shifted, _ = run(case, recipe(objective, apply=apply))
    assert case.log_gamma is not None
    expected = plain.terms * case.log_gamma.masked_fill(~case.mask, 0.0).exp()
    torch.testing.assert_close(shifted.terms, expected)
    assert torch.equal(shifted.clipped, plain.clipped)


def test_dppo_masks_by_probability_and_not_by_ratio() -> None:
    """A rare token may become a hundred times as likely, and a frequent one may not lose a fifth."""
    old, live = torch.tensor([[1e-5, 0.99, 0.8]]).log(), torch.tensor([[1e-3, 0.8, 0.81]]).log()
    mask = torch.ones(1, 3, dtype=torch.bool)
    for advantage, expected in ((1.0, [False, False, False]), (-1.0, [False, True, False])):
        batch = PolicyBatch(live, old, torch.tensor([advantage]), mask)
        for objective in ("dppo", "dppo_kl"):
            known = objectives()[objective]
            result = known()(batch, Clipping(known.clip_low, known.clip_high, "before_clip"))
            assert result.clipped.tolist() == [expected]


def test_kl_is_the_unbiased_estimator_down_to_small_distances() -> None:
    distance = torch.tensor([[-2.0, -1e-3, 0.0, 1e-3, 2.0, 300.0, 1.0]], dtype=torch.float64)
    mask = torch.tensor([[True] * 6 + [False]])
    logprobs = torch.full((1, 7), 0.0).requires_grad_()
    reference_logprobs = distance.float().requires_grad_()
    terms = kl_terms(logprobs, reference_logprobs, mask)
    exact = [[math.exp(d) - 1 - d for d in distance.float().double()[0, :5].tolist()]]
    torch.testing.assert_close(terms[:, :5].double(), torch.tensor(exact, dtype=torch.float64), rtol=1e-3, atol=0)
    assert torch.isfinite(terms).all()
    assert terms[0, 6] == 0
    gradient, constant = torch.autograd.grad(terms[:, :5].sum(), [logprobs, reference_logprobs], allow_unused=True)
    torch.testing.assert_close(gradient[0, :5], 1 - distance[0, :5].exp().float(), rtol=1e-4, atol=1e-7)
    assert constant is None


def test_entropy_is_a_bonus_of_response_tokens() -> None:
    entropy = torch.tensor([[0.5, 2.0, math.nan]]).requires_grad_()
    terms = entropy_terms(entropy, torch.tensor([[True, True, False]]))
    assert torch.equal(terms, torch.tensor([[-0.5, -2.0, 0.0]]))
    (gradient,) = torch.autograd.grad(terms.sum(), entropy)
    assert torch.equal(gradient, torch.tensor([[-1.0, -1.0, 0.0]]))


def totals_of(mask: Tensor) -> Totals:
    return Totals(mask.shape[0], int(mask.sum()), max_response_tokens=2 * LONGEST)


@pytest.mark.parametrize("objective", EVERY)
def test_a_positive_factor_of_the_advantages_is_one_of_the_terms(objective: str) -> None:
    """So that the weight of a group may be put into its advantages."""
    case = draw(5, padding=0.0)
    weighted = replace(case, advantages=3 * case.advantages)
    terms, thrice = (run(each, recipe(objective))[1].terms[case.mask] for each in (case, weighted))
    assert terms.abs().max() > 0
    torch.testing.assert_close(thrice, 3 * terms)
