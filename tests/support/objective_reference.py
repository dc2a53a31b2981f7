"""The objectives and corrections as their papers write them: one response, one token at a time, in Python floats.

Ratios are multiplied and not summed as logarithms, clips are written out by the sign of the advantage, and gradients
are central differences. What a formula puts under stop-gradient is read from `frozen`, which they do not nudge.
"""

import math
from dataclasses import dataclass, replace

from routershift.algorithms.choices import Application, CorrectionKind, Proximal

NUDGE = 1e-5


@dataclass(frozen=True)
class Response:
    """Log-probabilities of its tokens, and gamma~ of each."""

    live: tuple[float, ...]
    frozen: tuple[float, ...]
    proximal: tuple[float, ...]
    behaviour: tuple[float, ...]
    gamma: tuple[float, ...]
    advantage: float


@dataclass(frozen=True)
class Recipe:
    objective: str
    low: float
    high: float
    apply: Application
    proximal: Proximal
    correction: CorrectionKind
    rho_low: float
    rho_high: float


def loss(response: Response, recipe: Recipe) -> float:
    """Sum over the tokens of correction weight times term."""
    weights, kept = correction(response, recipe)
    return sum(w * t for w, t in zip(weights, terms(response, recipe, kept), strict=True))


def gradient(response: Response, recipe: Recipe) -> list[float]:
    """The derivative of the loss by each log-probability of the current policy."""
    found = []
    for t in range(len(response.live)):
        above, below = (
            loss(replace(response, live=(*response.live[:t], response.live[t] + step, *response.live[t + 1 :])), recipe)
            for step in (NUDGE, -NUDGE)
        )
        found.append((above - below) / (2 * NUDGE))
    return found


def correction(response: Response, recipe: Recipe) -> tuple[list[float], list[bool]]:
    """Weight of each token, and whether it is kept."""
    by_sequence = recipe.objective in ("gspo", "gmpo")
    over = response.proximal if recipe.proximal == "recompute" else response.frozen
    rho = [math.exp(a - b) for a, b in zip(over, response.behaviour, strict=True)]
    n, kept = len(rho), [True] * len(rho)
    if recipe.correction == "mask":
        kept = [recipe.rho_low <= r <= recipe.rho_high for r in rho]
    if recipe.correction == "sequence_mask":
        kept = [recipe.rho_low <= math.prod(rho) ** (1 / n) <= recipe.rho_high] * n
    if recipe.correction == "none" or (recipe.proximal == "behaviour" and recipe.objective != "reinforce"):
        weights = [1.0] * n
    elif recipe.correction == "truncate" and by_sequence:
        weights = [min(math.prod(rho) ** (1 / n), recipe.rho_high)] * n
    elif recipe.correction == "truncate":
        weights = [min(r, recipe.rho_high) for r in rho]
    elif recipe.correction == "sequence_mask":
        weights = [math.prod(rho) ** (1 / n)] * n
    elif by_sequence:
        weights = [math.prod(r for r, k in zip(rho, kept, strict=True) if k) ** (1 / n)] * n
    else:
        weights = rho
    if by_sequence and recipe.correction == "mask":
        return weights, kept
    return [w if k else 0.0 for w, k in zip(weights, kept, strict=True)], kept


def terms(response: Response, recipe: Recipe, kept: list[bool]) -> list[float]:
    """One for each token, to be minimised."""
    a, n = response.advantage, len(response.live)
    old = response.proximal if recipe.proximal == "recompute" else response.behaviour
    gamma = [g if k else 1.0 for g, k in zip(response.gamma, kept, strict=True)]
    inner = gamma if recipe.apply == "before_clip" else [1.0] * n
    outer = gamma if recipe.apply == "after_clip" else [1.0] * n

    def ratios(over: tuple[float, ...]) -> list[float]:
        return [math.exp(x - o) * g if k else 1.0 for x, o, g, k in zip(over, old, inner, kept, strict=True)]

    if recipe.objective == "reinforce":
        return [-g * a * x for g, x in zip(gamma, response.live, strict=True)]
    if recipe.objective == "cispo":
        limited = [min(max(w, 1 - recipe.low), 1 + recipe.high) for w in ratios(response.frozen)]
        return [-w * g * a * x for w, g, x in zip(limited, outer, response.live, strict=True)]
    ratio = ratios(response.live)
    if recipe.objective in ("dppo", "dppo_kl"):
        divergence = _binary_tv if recipe.objective == "dppo" else _binary_kl
        found = []
        for now, before, o, g, k in zip(response.live, response.frozen, old, gamma, kept, strict=True):
            w = math.exp(now - o) if k else 1.0
            moved = before - o if k else 0.0
            far = divergence(min(math.exp(o), 1.0), min(math.exp(before), 1.0))
            masked = (a > 0 and moved > 0 and far > recipe.high) or (a < 0 and moved < 0 and far > recipe.low)
            found.append(0.0 if masked else -w * a * g)
        return found
    if recipe.objective == "grpo":
        limited = [_clipped(w, a, 1 - recipe.low, 1 + recipe.high) for w in ratio]
        return [-w * a * g for w, g in zip(limited, outer, strict=True)]
    if recipe.objective == "gspo":
        whole = math.prod(ratio) ** (1 / n)
        return [-_clipped(whole, a, 1 - recipe.low, 1 + recipe.high) * a * math.prod(outer) ** (1 / n)] * n
    limited = [_clipped(w, a, math.exp(-recipe.low), math.exp(recipe.high)) for w in ratio]
    return [-((math.prod(limited) * math.prod(outer)) ** (1 / n)) * a] * n


def _binary_tv(old: float, live: float) -> float:
    """Half the sum, over the sampled token and all others, of the differences of their probabilities."""
    return (abs(old - live) + abs((1 - old) - (1 - live))) / 2


def _binary_kl(old: float, live: float) -> float:
    """KL(old || live) over the same two; float32 tells no probability below 2^-23 of the others from 0."""
    old_rest, live_rest = (max(1 - p, 2**-23) for p in (old, live))
    return old * math.log(old / live) + old_rest * math.log(old_rest / live_rest)


def _clipped(ratio: float, advantage: float, low: float, high: float) -> float:
    """What min(ratio A, clip(ratio) A) comes to: a bound only where A pushes the ratio over it."""
    return min(ratio, high) if advantage > 0 else max(ratio, low)
