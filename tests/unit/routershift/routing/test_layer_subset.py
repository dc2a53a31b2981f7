"""Routes of some layers: the mean over all is estimated without bias, within the bounds that are said."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from transformers import PreTrainedModel

from routershift.routing.hooks import Routing
from routershift.routing.layer_subset import are_drawn, bounds, draw, stands_for
from routershift.trajectory import RouterTrace, Trajectory
from services.learner.data.batch import Group, Sample
from tests.support.models import save_model
from tests.support.rollouts import forward, load, packed, perturbed, random_groups
from tests.support.routing import SCALE


@pytest.mark.parametrize(("layers", "chosen"), [(48, 12), (48, 1), (58, 12), (3, 2), (254, 7)])
def test_the_estimate_has_no_bias_and_keeps_its_bounds(layers: int, chosen: int) -> None:
    random, tokens = np.random.default_rng(0), 20_000
    shifts = random.random(layers) ** 3
    drawn = draw(tokens, layers, chosen, seed=1)
    assert are_drawn(drawn, layers)
    weights = stands_for(layers, chosen) / layers
    assert weights.sum() == pytest.approx(1)
    error = (shifts[drawn] * weights).sum(axis=1) - shifts.mean()
    ranges = np.array([np.ptp(shifts[a:b]) for a, b in pairwise(bounds(layers, chosen))])
    assert np.abs(error).max() <= (weights * ranges).sum() + 1e-12
    spread = np.sqrt(((weights * ranges) ** 2).sum())
    assert (np.abs(error) > spread * np.sqrt(np.log(2 / 0.001) / 2)).mean() <= 0.001
    assert abs(error.mean()) <= 4 * spread / 2 / np.sqrt(tokens)
    slack = 4 * spread / np.sqrt(tokens)
    assert 1 - slack <= np.exp(-error).mean() <= np.exp(spread**2 / 8) + slack


def test_the_same_response_has_the_same_layers_and_others_have_others() -> None:
    assert draw(50, 48, 12, seed=3).tolist() == draw(50, 48, 12, seed=3).tolist()
    assert draw(50, 48, 12, seed=3).tolist() != draw(50, 48, 12, seed=4).tolist()


def changed(group: Group, **changes: Callable[[RouterTrace], Any]) -> Group:
    """The group with fields of all its traces as these functions of the traces say."""

    def change(sample: Sample) -> Sample:
        trace = sample.completion.router_trace
        assert trace is not None
        made = replace(trace, **{name: of(trace) for name, of in changes.items()})
        return replace(sample, trajectory=Trajectory(replace(sample.completion, router_trace=made)))

    return replace(group, samples=tuple(change(sample) for sample in group.samples))


def with_layers(groups: Sequence[Group], places: Sequence[int]) -> list[Group]:
    """The groups with these layers alone on each token."""
    at = list(places)
    fields: dict[str, Callable[[RouterTrace], Any]] = {
        "expert_ids": lambda trace: trace.expert_ids[:, at],
        "log_scores": lambda trace: trace.scores[:, at],
        "layers": lambda trace: np.tile(np.array(at, np.uint8), (len(trace.expert_ids), 1)),
    }
    return [changed(group, **fields) for group in groups]


def measured(model: PreTrainedModel, groups: Sequence[Group]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log gamma [R] and overlap of choices [L]."""
    batch = packed(groups)
    with Routing(model).observing(batch.routes) as observation:
        forward(model, batch)
    shift, use = observation.result(), observation.use()
    assert shift is not None
    assert use is not None
    return shift.log_gamma.double().numpy(), use.overlaps.double().numpy()


def test_the_learner_makes_the_mean_over_all_layers_of_some(tmp_path: Path) -> None:
    """Three layers in strata {0} and {1, 2}: over both draws the estimates have the mean of all three as theirs."""
    folder = save_model(tmp_path)
    groups = random_groups(load(folder), groups=3, samples=2)
    model = perturbed(load(folder), SCALE)
    full, overlaps = measured(model, groups)
    drawn = [measured(model, with_layers(groups, places)) for places in ((0, 1), (0, 2))]
    assert np.abs(drawn[0][0] - full).max() > 1e-3, "a draw is not the mean"
    np.testing.assert_allclose(np.mean([gamma for gamma, _ in drawn], axis=0), full, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.mean([shared for _, shared in drawn], axis=0), overlaps, rtol=1e-5)


def test_groups_of_different_numbers_of_layers_go_through_one_pass(tmp_path: Path) -> None:
    """As after a change of the setting: each token by what it has."""
    folder = save_model(tmp_path)
    groups = random_groups(load(folder), groups=3, samples=2)
    model = perturbed(load(folder), SCALE)
    ways = [groups, with_layers(groups, (0, 2)), with_layers(groups, (1,))]
    expected = [measured(model, way)[0] for way in ways]
    mixed, _ = measured(model, [ways[i][i] for i in range(3)])
    # Passes sort by length, so which group a response token is of is read off scores that say so.
    marks: list[Callable[[RouterTrace], Any]] = [
        lambda trace: np.full_like(trace.scores, 0),
        lambda trace: np.full_like(trace.scores, -1),
        lambda trace: np.full_like(trace.scores, -2),
    ]
    routes = packed([changed(group, log_scores=mark) for group, mark in zip(groups, marks, strict=True)]).routes
    assert routes is not None
    of_group = -routes.log_scores[:, 0, 0].numpy()
    for i in range(3):
        at = np.flatnonzero(of_group == i)
        assert at.size
        np.testing.assert_allclose(mixed[at], expected[i][at], rtol=1e-5, atol=1e-6)
