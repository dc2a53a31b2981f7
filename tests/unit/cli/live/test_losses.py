"""What is lost, and when that is worth a word."""

from services.cli.live.losses import DropRate, lost, lost_between
from shared.streams.account import Ledger


def ledger(trained: int = 0, scored: int = 0, dead: int = 0, **dropped: int) -> Ledger:
    """At one moment; `scored` lie before the learner, or wait for the checkpoint of the step that had them."""
    return Ledger(
        prompted=trained + scored + dead + sum(dropped.values()),
        trained=trained,
        dropped=dropped,
        dead={"bad_trajectory": dead} if dead else {},
        in_flight=scored,
        stages={"prompted": 0, "generated": 0, "scored": scored},
    )


def test_dead_letters_are_lost_too() -> None:
    assert lost(ledger(dead=2, stale=3)) == {"stale": 3, "dead: bad_trajectory": 2}
    assert lost_between(ledger(stale=3), ledger(dead=2, stale=3)) == {"dead: bad_trajectory": 2}


def test_a_high_share_is_said_with_reasons_and_what_to_do() -> None:
    drops = DropRate(window=100)
    assert drops.note(ledger()) == ""
    assert drops.note(ledger(trained=5, stale=10)) == ""
    assert drops.share is None, "too few to tell"
    line = drops.note(ledger(trained=40, stale=60))
    assert drops.share == 0.6
    assert line.startswith("60% of the last 100 trajectories were dropped: 60 were too stale: raise run.max_staleness")


def test_what_waits_for_its_checkpoint_is_not_lost() -> None:
    """Trained groups count as such once their checkpoint is durable, which may take many steps."""
    drops = DropRate(window=100)
    drops.note(ledger())
    assert drops.note(ledger(scored=80, zero_variance=20)) == ""
    assert drops.share == 0.2
    assert drops.note(ledger(trained=160, zero_variance=40)) == ""


def test_it_is_said_less_and_less_often() -> None:
    drops = DropRate(window=10)
    said = [window for window in range(20) if drops.note(ledger(trained=window, zero_variance=9 * window))]
    assert said == [1, 2, 4, 8, 16]


def test_where_nothing_is_left_the_missing_step_is_said_instead() -> None:
    drops = DropRate(window=10)
    assert [drops.note(ledger(zero_variance=10 * window)) for window in range(5)] == [""] * 5
    assert drops.share == 1.0
