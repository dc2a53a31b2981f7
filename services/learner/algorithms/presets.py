"""The algorithms by name: each is an objective and what goes with it. Settings may replace any part."""

import math
from dataclasses import dataclass
from typing import Literal

Algorithm = Literal["grpo", "dapo", "dr_grpo", "gspo", "gmpo", "rspo", "cispo", "reinforce"]
ObjectiveName = Literal["grpo", "gspo", "gmpo", "cispo", "reinforce"]
AdvantageKind = Literal["z_score", "mean", "leave_one_out"]
Aggregation = Literal["response_mean", "token_mean", "fixed_length"]
Application = Literal["before_clip", "after_clip"]
Proximal = Literal["behaviour", "recompute"]
CorrectionKind = Literal["none", "truncate", "mask", "sequence_mask"]

# Above it rho is truncated, or its token or response dropped.
CORRECTION_HIGH: dict[CorrectionKind, float] = {"none": math.inf, "truncate": 2.0, "mask": 5.0, "sequence_mask": 5.0}


@dataclass(frozen=True, slots=True)
class Preset:
    """An algorithm in parts. The ratio, or its logarithm in gmpo, may fall by `clip_low` and rise by `clip_high`."""

    objective: ObjectiveName
    advantage: AdvantageKind
    aggregation: Aggregation
    clip_low: float
    clip_high: float
    router_shift: bool = False

    @property
    def has_ratio(self) -> bool:
        """Whether the objective itself weighs tokens by pi_theta / pi_old."""
        return self.objective != "reinforce"

    @property
    def is_sequence_level(self) -> bool:
        """Whether the tokens of a response share one ratio."""
        return self.objective in ("gspo", "gmpo")

    def weighs_by_rho(self, proximal: Proximal) -> bool:
        """Whether a correction weighs what it keeps by rho: where rho is not in the objective's ratio already."""
        return proximal == "recompute" or not self.has_ratio


ALGORITHMS: dict[Algorithm, Preset] = {
    "grpo": Preset("grpo", "z_score", "response_mean", 0.2, 0.2),  # arXiv 2402.03300
    "dapo": Preset("grpo", "z_score", "token_mean", 0.2, 0.28),  # arXiv 2503.14476
    "dr_grpo": Preset("grpo", "mean", "fixed_length", 0.2, 0.2),  # arXiv 2503.20783
    "gspo": Preset("gspo", "z_score", "response_mean", 3e-4, 4e-4),  # arXiv 2507.18071
    "gmpo": Preset("gmpo", "z_score", "response_mean", 0.4, 0.4),  # arXiv 2507.20673
    "rspo": Preset("gmpo", "z_score", "response_mean", 0.4, 0.4, router_shift=True),  # arXiv 2510.23027
    "cispo": Preset("cispo", "z_score", "response_mean", 1.0, 4.0),  # arXiv 2506.13585, 2510.13786
    "reinforce": Preset("reinforce", "leave_one_out", "token_mean", math.inf, math.inf),  # arXiv 2402.14740
}


def refusals(
    algorithm: Algorithm,
    *,
    clip_low: float | None,
    clip_high: float | None,
    router_shift: bool | None,
    proximal: Proximal,
    correction: CorrectionKind,
    replays_own_routes: bool,
) -> list[str]:
    """Why a combination of settings makes no sense, each with its fix; None is the algorithm's own choice."""
    preset = ALGORITHMS[algorithm]
    found = []
    if preset.router_shift and router_shift is False:
        found.append(f"router_shift.enabled is false; {algorithm} is gmpo with router shift; use gmpo")
    if not preset.has_ratio and (clip_low is not None or clip_high is not None):
        found.append(f"clip_low and clip_high mean nothing to {algorithm}, which has no ratio; leave them out")
    if preset.objective in ("grpo", "gspo") and clip_low is not None and clip_low >= 1:
        found.append(f"clip_low is {clip_low}; in {algorithm} it must be below 1, as a ratio is positive")
    if preset.objective == "cispo" and clip_low is not None and clip_low > 1:
        found.append(f"clip_low is {clip_low}; in cispo 1 is already no lower bound, as a ratio is positive")
    if correction == "truncate" and not preset.weighs_by_rho(proximal):
        found.append(
            f"correction truncate with proximal {proximal} would weigh by the ratio twice, {algorithm} has it already; "
            "use proximal recompute, or correction mask"
        )
    if replays_own_routes and proximal != "recompute":
        found.append("routing_replay r2 replays the routes of the recomputed proximal policy; use proximal recompute")
    if proximal == "recompute" and not preset.has_ratio and correction == "none" and not replays_own_routes:
        found.append(f"proximal recompute is a pass that {algorithm} does not read; use proximal behaviour")
    return found
