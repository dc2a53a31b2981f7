"""The cells of the stability study: an objective, a correction, a lag and how hard a batch is pressed.

docs/explanation/stability.md is the protocol: what each arm is, and which outcomes are compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from services.learner.settings import RouterShiftSettings
from shared.errors import InvalidInputError
from tests.bench.study.placebos import Placebo
from tests.bench.study.variants import Variant

# Router shift with gamma_min = 1: every weight is 1, exactly, and gamma is measured as where it weighs.
_MEASURED: Mapping[str, Any] = {"enabled": True, "gamma_min": 1.0}
_SHIFTED: Mapping[str, Any] = {"enabled": True}


@dataclass(frozen=True, slots=True)
class Arm:
    """A correction, as settings of the learner and what takes gamma's place."""

    router_shift: Mapping[str, Any]
    learner: Mapping[str, Any]
    placebo: Placebo | None = None
    variant: Variant | None = None
    sampler_bfloat16: bool = False  # else float32, as the learner is
    replay_above: float | None = None  # of `replay_above`, where it is not None


CORRECTIONS: Mapping[str, Arm] = {
    "none": Arm(_MEASURED, {}),
    "shift": Arm(_SHIFTED, {}),
    "permuted": Arm(_SHIFTED, {}, Placebo.PERMUTED),
    "mean": Arm(_SHIFTED, {}, Placebo.MEAN),
    "tis": Arm(_MEASURED, {"proximal": "recompute", "correction": {"kind": "truncate"}}),
    "icepop": Arm(_MEASURED, {"correction": {"kind": "mask"}}),
    "r3": Arm(_MEASURED, {"routing_replay": "r3"}),
    "r3_shift": Arm(_SHIFTED, {"routing_replay": "r3"}),
    "r3_weights": Arm(_MEASURED, {"routing_replay": "r3_weights"}),
    "r3_threshold": Arm(_MEASURED, {"routing_replay": "r3"}, replay_above=0.5),
    "expert_ratio": Arm(_MEASURED, {}, variant=Variant.EXPERT_RATIO),
    "frozen": Arm(_MEASURED, {"freeze_router": True}),
    "frozen_shift": Arm(_SHIFTED, {"freeze_router": True}),
    "product": Arm({**_SHIFTED, "layer_aggregation": "product"}, {}),
    "after_clip": Arm({**_SHIFTED, "apply": "after_clip"}, {}),
    "by_layer": Arm(_SHIFTED, {}, variant=Variant.BY_LAYER),
    "gradient": Arm(_SHIFTED, {}, variant=Variant.GRADIENT),
    "bf16": Arm(_MEASURED, {}, sampler_bfloat16=True),
    "bf16_shift": Arm(_SHIFTED, {}, sampler_bfloat16=True),
    "bf16_baseline": Arm({**_SHIFTED, "mismatch_baseline": "subtract"}, {}, sampler_bfloat16=True),
}
# What is asked of router shift itself: each is compared with `shift` as well.
ABLATIONS = ("product", "after_clip", "by_layer", "gradient")
OBJECTIVES = ("grpo", "gspo", "gmpo", "cispo", "dppo", "dppo_kl")
DIFFERENTIATE_RATIO = ("grpo", "gspo", "gmpo")  # the others weigh log pi by a ratio without gradient, or mask by one

_DEFAULT_BOUND = RouterShiftSettings().gamma_min


def parse_arm(name: str) -> tuple[str, str]:
    """Objective and correction of OBJECTIVE+CORRECTION or OBJECTIVE+CORRECTION@BOUND, the lower bound of gamma.

    A correction has one spelling, that of the runs which are kept: the learner's default bound is left out.

    Raises:
        InvalidInputError: an objective or a correction that is none, a pair without a meaning, a bound that is none or
            of a correction that does not weigh by gamma.
    """
    objective, _, spelled = name.partition("+")
    correction, at, bound = spelled.partition("@")
    if objective not in OBJECTIVES or correction not in CORRECTIONS:
        raise InvalidInputError(
            f"{name} is no arm: OBJECTIVE+CORRECTION, as in grpo+shift; of {', '.join(OBJECTIVES)} and "
            f"{', '.join(CORRECTIONS)}"
        )
    if (
        CORRECTIONS[correction].variant in (Variant.GRADIENT, Variant.EXPERT_RATIO)
        and objective not in DIFFERENTIATE_RATIO
    ):
        raise InvalidInputError(
            f"{name}: {objective} has no gradient through its ratio; use {correction} with one of "
            f"{', '.join(DIFFERENTIATE_RATIO)}"
        )
    if not at:
        return objective, correction
    if CORRECTIONS[correction].router_shift is _MEASURED:
        raise InvalidInputError(
            f"{name} has a lower bound of gamma, and {correction} does not weigh by it; leave @ out"
        )
    try:
        gamma_min = float(bound)
    except ValueError:
        gamma_min = 0.0
    if not 0 < gamma_min <= 1:
        raise InvalidInputError(f"{name}: the lower bound of gamma is {bound!r}; it must be above 0 and at most 1")
    return objective, correction if gamma_min == _DEFAULT_BOUND else f"{correction}@{gamma_min:g}"


def arm_of(correction: str) -> Arm:
    """The arm of a correction that `parse_arm` gave."""
    name, _, bound = correction.partition("@")
    arm = CORRECTIONS[name]
    return replace(arm, router_shift={**arm.router_shift, "gamma_min": float(bound)}) if bound else arm


@dataclass(frozen=True, slots=True)
class Pressure:
    """How hard a batch is pressed: its updates and their size."""

    learning_rate: float
    minibatches: int
    epochs: int

    @property
    def name(self) -> str:
        return f"{self.learning_rate:g} x {self.minibatches} x {self.epochs}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One condition; a seed makes a run of it."""

    objective: str
    correction: str  # as `parse_arm` gives it
    staleness: int  # versions between the weights that sample and those that are trained first
    pressure: Pressure

    @property
    def arm(self) -> str:
        return f"{self.objective}+{self.correction}"

    @property
    def condition(self) -> str:
        """What it shares with the cells that it is compared with."""
        return f"lag {self.staleness}, {self.pressure.name}"

    @property
    def learner(self) -> dict[str, Any]:
        """The table [learner]."""
        arm, pressure = arm_of(self.correction), self.pressure
        return {
            "algorithm": self.objective,
            "router_shift": dict(arm.router_shift),
            "minibatches": pressure.minibatches,
            "epochs": pressure.epochs,
            "optimizer": {"learning_rate": pressure.learning_rate},
            "samples": {"groups": 0, "dropped": 0},
            **arm.learner,
        }

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Cell":
        """The inverse of `as_json`."""
        return cls(value["objective"], value["correction"], value["staleness"], Pressure(**value["pressure"]))


def factorial(
    arms: Sequence[tuple[str, str]], stalenesses: Sequence[int], pressures: Sequence[Pressure]
) -> Iterator[Cell]:
    """Every arm, an objective and a correction, in every condition; all arms of one condition after each other."""
    for staleness, pressure in product(stalenesses, pressures):
        for objective, correction in arms:
            yield Cell(objective, correction, staleness, pressure)
