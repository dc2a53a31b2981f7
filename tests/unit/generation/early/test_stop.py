"""Early stop against whole groups, by enumeration of all that can be sampled: what is expected is the same."""

import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from routershift.algorithms.choices import AdvantageKind
from routershift.trajectory import Completion, FinishReason, Trajectory, VersionSpan
from services.generation.early.stop import EarlyStop, goes_on
from services.learner.data.batch import Group, Sample
from services.learner.data.plan import Planner
from shared.settings import EarlyStopSettings
from tests.support.settings import learner_settings

N, FIRST = 5, 2
PROMPTS = (0.02, 0.3, 0.6, 0.97)  # success rates, each as likely
KINDS: tuple[AdvantageKind, ...] = ("z_score", "mean", "leave_one_out")
COMPLETION = Completion(
    0, np.arange(1, dtype=np.int32), np.zeros(1, np.float32), (VersionSpan(0, 1),), FinishReason.STOP, None
)


@cache
def planner(kind: AdvantageKind) -> Planner:
    settings = learner_settings(advantage=kind, aggregation="token_mean")
    return Planner(settings, 8, ranks=1, with_routes=False, is_flat=False)


@cache
def advantages(kind: AdvantageKind, rewards: tuple[int, ...], weight: float) -> NDArray[np.float64]:
    """Those that the learner trains with [N]; zeros where it drops the group."""
    samples = tuple(
        Sample(np.array([i], np.int32), Trajectory(COMPLETION), float(reward)) for i, reward in enumerate(rewards)
    )
    group = Group("g", samples, weight)
    if planner(kind).drop_reason(group):
        return np.zeros(len(rewards))
    (share,) = planner(kind).divide([group], seed=0, step=0)[0]
    by_sample = {int(each.sample.prompt_ids[0]): each.advantages[0] for each in share.samples}
    return np.array([by_sample[i] for i in range(len(rewards))])


def gradient(kind: AdvantageKind, success: float, rewards: tuple[int, ...], weight: float = 1.0) -> float:
    """What a group adds to the gradient: its advantages times the scores d/dz log P(r) of Bernoulli rewards."""
    return float(advantages(kind, rewards, weight) @ (np.array(rewards) - success))


def groups(success: float) -> Iterator[tuple[tuple[int, ...], float]]:
    """All rewards of a group with their probability."""
    for rewards in itertools.product((0, 1), repeat=N):
        yield rewards, math.prod(success if reward else 1 - success for reward in rewards)


def learnt(error: float = 1.0, equal: int = 60) -> EarlyStop:
    """A test that knows decided groups of both kinds, none of which turned out mixed."""
    stop = EarlyStop(EarlyStopSettings(first=FIRST, error=error), N)
    for reward in (0.0, 1.0):
        for _ in range(equal):
            stop.learn("v", [reward] * N)
    return stop


def expected(kind: AdvantageKind, stop: EarlyStop, prompts: Sequence[float], *, weighted: bool = True) -> float:
    """The expected sum over these prompts, one after the other, each decided by what came of those before."""
    if not prompts:
        return 0.0
    success, *later = prompts
    total = 0.0
    for rewards, chance in groups(success):
        known = copy.deepcopy(stop)
        first = [float(reward) for reward in rewards[:FIRST]]
        probability = known.probability("v", first)
        stopped = expected(kind, known, later, weighted=weighted) if probability < 1 and later else 0.0
        if rewards[0] == rewards[1]:
            known.learn("v", [float(reward) for reward in rewards])
        own = gradient(kind, success, rewards, 1 / probability if weighted else 1.0)
        total += chance * (
            probability * (own + expected(kind, known, later, weighted=weighted)) + (1 - probability) * stopped
        )
    return total


def whole(kind: AdvantageKind, prompts: Sequence[float]) -> float:
    return sum(chance * gradient(kind, success, rewards) for success in prompts for rewards, chance in groups(success))


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_is_expected_to_add_what_a_whole_one_does(kind: AdvantageKind) -> None:
    for success in PROMPTS:
        plain = whole(kind, [success])
        assert expected(kind, learnt(), [success]) == pytest.approx(plain, rel=1e-5)
        biased = expected(kind, learnt(), [success], weighted=False)
        assert abs(biased / plain - 1) > 0.1  # so that the test could fail


def test_what_one_group_teaches_the_test_does_not_bias_the_next() -> None:
    prompts = [0.3, 0.6]
    assert expected("z_score", learnt(equal=4), prompts) == pytest.approx(whole("z_score", prompts), rel=1e-5)


def test_groups_go_on_until_the_test_has_seen_enough_and_where_it_errs() -> None:
    stop = EarlyStop(EarlyStopSettings(first=FIRST, error=0.1), N)
    assert stop.probability("v", [0.0, 0.0]) == 1  # (0 + 1) / (0 + 2) of decided groups would be mixed
    for _ in range(9):
        stop.learn("v", [0.0] * N)
    for _ in range(3):
        stop.probability("v", [0.0, 1.0])  # most are not decided
    assert stop.probability("v", [0.0, 0.0]) < 1
    assert stop.probability("v", [1.0, 1.0]) == stop.probability("w", [0.0, 0.0]) == 1
    assert stop.probability("v", [0.0, 1.0]) == 1
    for _ in range(2):
        stop.learn("v", [0.0, 0.0, 1.0, 0.0, 0.0])
    assert stop.probability("v", [0.0, 0.0]) == 1


def test_weights_are_bounded_however_long_nothing_is_mixed() -> None:
    stop = learnt(equal=2000)
    for _ in range(2000):
        probability = stop.probability("v", [0.0] * FIRST)
    assert 1 / probability < 11


@pytest.mark.parametrize(("decided", "mixed"), [(0.5, 0.02), (0.8, 0.05), (0.3, 0.1)])
def test_the_probability_makes_variance_for_all_that_is_sampled_least(decided: float, mixed: float) -> None:
    """Against a search: groups with unequal rewards add 1 to the second moment, decided ones divided by p."""
    stop = EarlyStop(EarlyStopSettings(first=FIRST, error=1), N)
    for i in range(4000):
        stop.probability("v", [0.0, float(i % 100 >= 100 * decided)])
        stop.learn("v", [0.0, 0.0, float(i % 100 < 100 * mixed), 0.0, 0.0])
    found = stop.probability("v", [0.0, 0.0])

    def cost(p: float) -> float:
        sampled = FIRST + (N - FIRST) * (1 - decided + decided * p)
        return sampled * (1 - decided + decided * mixed / p)

    best = min(np.linspace(0.01, 1, 991).tolist(), key=cost)
    assert cost(found) == pytest.approx(cost(best), rel=0.02)


def test_a_group_that_is_sampled_again_is_drawn_again_alike() -> None:
    seeds = range(0, 8 * 2000, 8)
    drawn = [goes_on(0.25, seed) for seed in seeds]
    assert drawn == [goes_on(0.25, seed) for seed in seeds]
    assert sum(drawn) == pytest.approx(500, abs=100)
    assert all(goes_on(1.0, seed) for seed in seeds)
