"""The cells of the stability study: an objective, a correction, a lag and how hard a batch is pressed.

docs/explanation/stability.md is the protocol: what each arm is, and which outcomes are compared.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from tests.bench.study.placebos import Placebo

# Router shift with gamma_min = 1: every weight is 1, exactly, and gamma is measured as where it weighs.
_MEASURED: Mapping[str, Any] = {"enabled": True, "gamma_min": 1.0}
_SHIFTED: Mapping[str, Any] = {"enabled": True}


@dataclass(frozen=True, slots=True)
class Arm:
    """A correction, as settings of the learner and what takes gamma's place."""

    router_shift: Mapping[str, Any]
    learner: Mapping[str, Any]
    placebo: Placebo | None = None


CORRECTIONS: Mapping[str, Arm] = {
    "none": Arm(_MEASURED, {}),
    "shift": Arm(_SHIFTED, {}),
    "permuted": Arm(_SHIFTED, {}, Placebo.PERMUTED),
    "mean": Arm(_SHIFTED, {}, Placebo.MEAN),
    "tis": Arm(_MEASURED, {"proximal": "recompute", "correction": {"kind": "truncate"}}),
    "icepop": Arm(_MEASURED, {"correction": {"kind": "mask"}}),
    "r3": Arm(_MEASURED, {"routing_replay": "r3"}),
    "r3_shift": Arm(_SHIFTED, {"routing_replay": "r3"}),
    "frozen": Arm(_MEASURED, {"freeze_router": True}),
    "frozen_shift": Arm(_SHIFTED, {"freeze_router": True}),
}
OBJECTIVES = ("grpo", "gspo", "gmpo", "cispo", "dppo", "dppo_kl")


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
    correction: str
    staleness: int  # versions between the weights that sample and those that are trained first
    pressure: Pressure

    @property
    def arm(self) -> str:
        return f"{self.objective}+{self.correction}"

    @property
    def learner(self) -> dict[str, Any]:
        """The table [learner]."""
        arm, pressure = CORRECTIONS[self.correction], self.pressure
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


def factorial(
    arms: Sequence[tuple[str, str]], stalenesses: Sequence[int], pressures: Sequence[Pressure]
) -> Iterator[Cell]:
    """Every arm, an objective and a correction, in every condition; all arms of one condition after each other."""
    for staleness, pressure in product(stalenesses, pressures):
        for objective, correction in arms:
            yield Cell(objective, correction, staleness, pressure)
