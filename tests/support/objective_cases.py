"""Random batches for tests of objectives, and an objective run on one of them."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from routershift.algorithms.choices import Application, CorrectionKind, Proximal
from routershift.algorithms.corrections import Correction, Rule, correct
from routershift.algorithms.objectives.base import Clipping, ObjectiveResult, PolicyBatch
from routershift.algorithms.objectives.registry import objectives
from tests.support.objective_reference import Recipe, Response

RESPONSES, LONGEST = 12, 11


@dataclass(frozen=True)
class Case:
    """Responses of 1 to 11 tokens: ratios, rho and their means well inside and well outside of every bound."""

    mask: Tensor
    behaviour: Tensor
    proximal: Tensor
    live: Tensor
    log_gamma: Tensor | None
    advantages: Tensor

    def correction(self, recipe: Recipe) -> Correction:
        objective = objectives()[recipe.objective]()
        over = self.proximal if recipe.proximal == "recompute" else self.live
        weighs = objective.weighs_by_rho(recipe.proximal)
        rule = Rule(recipe.correction, recipe.rho_low, recipe.rho_high, weighs, objective.is_sequence_level)
        return correct(over - self.behaviour, self.mask, rule)

    def batch(self, recipe: Recipe, kept: Tensor | None = None) -> PolicyBatch:
        return PolicyBatch(
            logprobs=self.live.clone().requires_grad_(),
            old_logprobs=self.proximal if recipe.proximal == "recompute" else self.behaviour,
            advantages=self.advantages,
            mask=self.mask,
            log_gamma=self.log_gamma,
            kept=kept,
        )

    def responses(self) -> list[Response]:
        """In float64, of the very float32 numbers."""
        gamma = torch.ones_like(self.live) if self.log_gamma is None else self.log_gamma.double().exp()
        found = []
        for i, row in enumerate(self.mask):
            live, proximal, behaviour, shift = (
                tuple(x[i, row].double().tolist()) for x in (self.live, self.proximal, self.behaviour, gamma)
            )
            found.append(Response(live, live, proximal, behaviour, shift, self.advantages[i].item()))
        return found

    def part(self, rows: NDArray[np.int64]) -> "Case":
        """Some of the responses, padded to the longest among them."""
        width = int(self.mask[rows].sum(dim=1).max())
        mask, behaviour, proximal, live = (
            x[rows, :width] for x in (self.mask, self.behaviour, self.proximal, self.live)
        )
        log_gamma = None if self.log_gamma is None else self.log_gamma[rows, :width]
        return Case(mask, behaviour, proximal, live, log_gamma, self.advantages[rows])


def draw(seed: int, shifted: bool = True, spread: float = 0.5, padding: float = math.nan) -> Case:
    """The same ratios with and without router shift; `padding` is the garbage there."""
    rng = np.random.default_rng(seed)
    shape = (RESPONSES, LONGEST)
    lengths = rng.integers(1, LONGEST + 1, size=RESPONSES)
    lengths[0] = LONGEST
    mask = torch.arange(LONGEST) < torch.tensor(lengths)[:, None]
    behaviour = -rng.exponential(1.0, size=shape)
    # An offset for each response, so that means over tokens spread as well.
    proximal = behaviour + spread * (rng.normal(size=shape) + rng.normal(size=(RESPONSES, 1)))
    live = proximal + spread * (rng.normal(size=shape) + 0.5 * rng.normal(size=(RESPONSES, 1)))
    log_gamma = rng.uniform(math.log(0.8), 0, size=shape)
    advantages = torch.tensor(rng.normal(size=RESPONSES), dtype=torch.float32)
    advantages[1] = 0.0

    def padded(values: NDArray[np.float64]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).masked_fill(~mask, padding)

    gamma = padded(log_gamma) if shifted else None
    return Case(mask, padded(behaviour), padded(proximal), padded(live), gamma, advantages)


def recipe(
    objective: str,
    proximal: Proximal = "behaviour",
    correction: CorrectionKind = "none",
    apply: Application = "before_clip",
    low: float = 0.2,
    high: float = 0.28,
) -> Recipe:
    return Recipe(objective, low, high, apply, proximal, correction, rho_low=0.6, rho_high=1.5)


def run(case: Case, chosen: Recipe) -> tuple[PolicyBatch, ObjectiveResult, Correction]:
    correction = case.correction(chosen)
    batch = case.batch(chosen, correction.kept)
    clipping = Clipping(chosen.low, chosen.high, chosen.apply)
    return batch, objectives()[chosen.objective]()(batch, clipping), correction


def gradient_of(loss: Tensor, batch: PolicyBatch) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, batch.logprobs)
    return gradient
