"""The simulation against cases whose times can be worked out by hand."""

from dataclasses import replace

import pytest

from services.planner.simulation import System, log_normal, simulate

# Two replicas, each with room for a whole step; a token takes 10 ms however many are sampled.
BASE = System(
    groups=4,
    n=4,
    max_staleness=2,
    tickets=12,
    replicas=2,
    slots=64,
    decode_seconds=lambda sequences: 0.01,
    prefill_seconds=0.0,
    length=lambda rng: 100,
    reward_seconds=0.0,
    train_seconds=lambda tokens: 5.0,
    publish_seconds=0.0,
    load_seconds=0.0,
    token_bytes=1.0,
    stream_bandwidth=1e12,
)


def test_a_slow_learner_sets_the_pace() -> None:
    """Sampling takes 1 s, training 5: the learner never waits."""
    outcome = simulate(BASE)
    assert outcome.step_seconds == pytest.approx([5.0] * 20)
    assert outcome.learner_busy == pytest.approx(1.0)
    assert outcome.trained_tokens == 20 * 4 * 4 * 100


def test_slow_replicas_set_the_pace() -> None:
    """Eight slots sample 800 tokens a second, and a step has 1,600 tokens."""
    slow = replace(BASE, slots=4, train_seconds=lambda tokens: 0.1)
    outcome = simulate(slow)
    assert outcome.seconds / outcome.steps == pytest.approx(2.0, rel=0.02)
    assert outcome.sampling == pytest.approx(1.0, abs=0.02)
    assert outcome.learner_busy == pytest.approx(0.05, abs=0.01)


def test_synchronous_steps_are_the_sum_of_their_parts() -> None:
    parts = replace(BASE, max_staleness=0, tickets=4, reward_seconds=0.5, publish_seconds=0.25, load_seconds=0.75)
    outcome = simulate(parts)
    assert outcome.step_seconds == pytest.approx([1.0 + 0.5 + 5.0 + 0.25 + 0.75] * 20)
    assert outcome.staleness == {0: 80}
    assert outcome.stale == 0


def test_narrow_streams_set_the_pace() -> None:
    """1,600 bytes of a step go over the streams twice, at 400 bytes a second."""
    outcome = simulate(replace(BASE, stream_bandwidth=400.0))
    assert outcome.seconds / outcome.steps == pytest.approx(8.0, rel=0.02)
    assert outcome.stream_busy == pytest.approx(1.0, abs=0.02)
    assert outcome.stream_bytes_per_second == pytest.approx(400.0, rel=0.02)


def test_equal_rewards_cost_sampling() -> None:
    """Half of the groups are not trained on, so a step samples twice as many."""
    half = replace(BASE, groups=64, tickets=192, slots=16, train_seconds=lambda tokens: 0.1, unused=0.5)
    outcome = simulate(half, steps=40)
    assert outcome.unused / (outcome.unused + 40 * 64) == pytest.approx(0.5, abs=0.05)
    assert outcome.sampled_tokens / outcome.trained_tokens == pytest.approx(2.0, rel=0.1)


@pytest.mark.parametrize("max_staleness", [0, 1, 4])
def test_nothing_staler_than_allowed_is_trained_on(max_staleness: int) -> None:
    tails = replace(
        BASE, max_staleness=max_staleness, tickets=4 * (max_staleness + 1), slots=4, length=log_normal(200, 2000, 1.2)
    )
    outcome = simulate(replace(tails, train_seconds=lambda tokens: 1.0))
    assert max(outcome.staleness) <= max_staleness
    assert sum(outcome.staleness.values()) == 20 * 4


def test_staleness_beyond_the_tickets_is_for_those_that_others_overtake() -> None:
    """With the same groups in flight, the longest are dropped or trained on."""
    tails = replace(BASE, slots=48, train_seconds=lambda tokens: 0.1, length=log_normal(100, 2000, 1.2))
    dropping, patient = simulate(tails, steps=60), simulate(replace(tails, max_staleness=30), steps=60)
    assert dropping.stale > 20
    assert patient.stale == 0
    assert patient.trained_tokens / patient.sampled_tokens > 1.3 * dropping.trained_tokens / dropping.sampled_tokens
    assert patient.staleness_mean < 4


def test_a_long_tail_delays_groups() -> None:
    """A synchronous step waits for the longest of its 16 responses."""
    same = replace(BASE, max_staleness=0, tickets=4, train_seconds=lambda tokens: 0.1)
    outcome = simulate(replace(same, length=log_normal(100, 2000, 1.0)))
    assert outcome.seconds > 2 * simulate(same).seconds


def test_the_seed_is_all_that_is_random() -> None:
    tails = replace(BASE, length=log_normal(100, 1000), unused=0.3)
    assert simulate(tails, seed=1) == simulate(tails, seed=1)
    assert simulate(tails, seed=1).sampled_tokens != simulate(tails, seed=2).sampled_tokens
