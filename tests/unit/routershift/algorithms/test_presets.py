"""The presets, and the combinations that are refused."""

from typing import Any, get_args

import pytest

from routershift.algorithms.choices import CORRECTION_HIGH, CorrectionKind
from routershift.algorithms.presets import algorithms, refusals

# What each paper's clip range is relative to 1, or to 0 in log space.
CLIP_RANGES = {
    "grpo": (0.2, 0.2),
    "dapo": (0.2, 0.28),
    "dr_grpo": (0.2, 0.2),
    "gspo": (3e-4, 4e-4),
    "gmpo": (0.4, 0.4),
    "rspo": (0.4, 0.4),
    "cispo": (1.0, 4.0),
    "dppo": (0.15, 0.15),
    "dppo_kl": (0.05, 0.05),
}


def found(algorithm: str, **settings: Any) -> list[str]:
    chosen: dict[str, Any] = {
        "clip_low": None,
        "clip_high": None,
        "router_shift": None,
        "proximal": "behaviour",
        "correction": "none",
        "replays_own_routes": False,
    }
    return refusals(algorithm, **(chosen | settings))


def test_every_name_has_its_entry() -> None:
    assert set(algorithms()) == {*CLIP_RANGES, "reinforce"}
    assert list(CORRECTION_HIGH) == list(get_args(CorrectionKind))


def test_clip_ranges_are_those_of_the_papers() -> None:
    assert {name: (p.clip_low, p.clip_high) for name, p in algorithms().items() if p.objective.has_ratio} == CLIP_RANGES


def test_only_rspo_brings_router_shift_and_is_gmpo_otherwise() -> None:
    assert [name for name, preset in algorithms().items() if preset.router_shift] == ["rspo"]
    known = algorithms()
    rspo, gmpo = known["rspo"], known["gmpo"]
    assert (rspo.objective, rspo.advantage, rspo.aggregation) == (gmpo.objective, gmpo.advantage, gmpo.aggregation)


@pytest.mark.parametrize("algorithm", list(algorithms()))
def test_what_makes_sense_is_not_refused(algorithm: str) -> None:
    assert found(algorithm) == []
    assert found(algorithm, router_shift=True) == []
    for correction in ("truncate", "mask", "sequence_mask"):
        assert found(algorithm, proximal="recompute", correction=correction) == []
    assert found(algorithm, correction="mask") == []
    assert found(algorithm, proximal="recompute", replays_own_routes=True) == []


@pytest.mark.parametrize(
    ("algorithm", "settings", "named"),
    [
        ("rspo", {"router_shift": False}, "use gmpo"),
        ("reinforce", {"clip_high": 0.2}, "no ratio"),
        ("grpo", {"clip_low": 1.0}, "below 1"),
        ("dapo", {"clip_low": 1.5}, "clip_low is 1.5"),
        ("gspo", {"clip_low": 1.5}, "below 1"),
        ("cispo", {"clip_low": 1.5}, "clip_low is 1.5"),
        ("dppo", {"clip_high": 1.0}, "clip_high is 1.0"),
        ("rspo", {"correction": "truncate"}, "twice"),
        ("cispo", {"correction": "truncate"}, "use proximal recompute"),
        ("rspo", {"replays_own_routes": True}, "routing_replay r2"),
        ("reinforce", {"proximal": "recompute"}, "use proximal behaviour"),
    ],
)
def test_contradictions_are_refused(algorithm: str, settings: dict[str, Any], named: str) -> None:
    (reason,) = found(algorithm, **settings)
    assert named in reason


def test_reinforce_may_truncate_without_a_proximal_policy() -> None:
    assert found("reinforce", correction="truncate") == []


def test_a_range_may_be_as_wide_as_it_has_a_meaning() -> None:
    assert found("cispo", clip_low=1.0) == []
    assert found("gmpo", clip_low=1.5, clip_high=1.5) == []
