"""The algorithms by name: each objective with the choices of its paper, and variants. Settings may replace any part."""

from dataclasses import dataclass, replace
from functools import cache

from routershift.algorithms.choices import AdvantageKind, Aggregation, CorrectionKind, Proximal
from routershift.algorithms.objectives.base import Objective
from routershift.algorithms.objectives.registry import GROUP, objectives
from routershift.errors import NotFoundError, PreconditionError


@dataclass(frozen=True, slots=True)
class Preset:
    """An algorithm in parts. The ratio, or its logarithm in gmpo, may fall by `clip_low` and rise by `clip_high`."""

    objective: Objective
    advantage: AdvantageKind
    aggregation: Aggregation
    clip_low: float
    clip_high: float
    router_shift: bool = False

    @classmethod
    def of(cls, objective: Objective) -> "Preset":
        """The objective as its paper has it."""
        return cls(objective, objective.advantage, objective.aggregation, objective.clip_low, objective.clip_high)


def algorithms() -> dict[str, Preset]:
    """Every algorithm by name: the objectives, and variants of them.

    Raises:
        PreconditionError: an entry point of an objective that cannot be used.
    """
    known = {name: Preset.of(objective()) for name, objective in objectives().items()}
    grpo, gmpo = known["grpo"], known["gmpo"]
    variants = {
        "dapo": replace(grpo, aggregation="token_mean", clip_high=0.28),  # arXiv 2503.14476
        "dr_grpo": replace(grpo, advantage="mean", aggregation="fixed_length"),  # arXiv 2503.20783
        "rspo": replace(gmpo, router_shift=True),  # arXiv 2510.23027
    }
    if taken := known.keys() & variants.keys():
        raise PreconditionError(f"an entry point of {GROUP} is named {min(taken)!r}, which is an algorithm; rename it")
    return known | variants


@cache  # installed packages stay as they are while a process runs
def preset_of(algorithm: str) -> Preset:
    """Raises NotFoundError for an unknown name, PreconditionError for an entry point that cannot be used."""
    known = algorithms()
    if algorithm not in known:
        raise NotFoundError(
            f"learner.algorithm is {algorithm!r}; known: {', '.join(known)}. A package adds an objective by the entry "
            f"point {GROUP}"
        )
    return known[algorithm]


def refusals(
    algorithm: str,
    *,
    clip_low: float | None,
    clip_high: float | None,
    router_shift: bool | None,
    proximal: Proximal,
    correction: CorrectionKind,
    replays_own_routes: bool,
) -> list[str]:
    """Why a combination of settings makes no sense, each with its fix; None is the algorithm's own choice."""
    preset = preset_of(algorithm)
    objective = preset.objective
    found = []
    if preset.router_shift and router_shift is False:
        found.append(f"router_shift.enabled is false; {algorithm} is gmpo with router shift; use gmpo")
    found += objective.refusals(algorithm, clip_low, clip_high)
    if correction == "truncate" and not objective.weighs_by_rho(proximal):
        found.append(
            f"correction truncate with proximal {proximal} would weigh by the ratio twice, {algorithm} has it already; "
            "use proximal recompute, or correction mask"
        )
    if replays_own_routes and proximal != "recompute":
        found.append("routing_replay r2 replays the routes of the recomputed proximal policy; use proximal recompute")
    if proximal == "recompute" and not objective.has_ratio and correction == "none" and not replays_own_routes:
        found.append(f"proximal recompute is a pass that {algorithm} does not read; use proximal behaviour")
    return found
