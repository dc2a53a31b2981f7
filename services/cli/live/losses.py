"""What ends without being trained on: how much, why, and when that is worth a word."""

from collections.abc import Mapping

from shared.streams.account import Ledger

MANY = 0.5  # share that is worth a warning
_IN_WORDS = {
    "zero_variance": "had equal rewards for all their responses (zero variance), which teaches nothing: check the "
    "verifier and the prompts' difficulty, set curriculum.selection.strategy to dynamic where prompts come back, or "
    "raise rollout.n or rollout.temperature",
    "decided": "had equal rewards for their first responses, so that no more were sampled (rollout.early_stop)",
    "stale": "were too stale: raise run.max_staleness, or look for why generation does not load new weights in "
    "logs/generation.jsonl",
    "overlong": "were all cut for their length, and learner.overlong leaves such out: raise rollout.max_tokens or "
    "generation.max_model_len",
    "missing_traces": "came without router traces; see generation.router_export",
}


def lost(ledger: Ledger) -> dict[str, int]:
    """Trajectories that ended untrained, by reason; `dead: REASON` for dead letters."""
    return {**ledger.dropped, **{f"dead: {reason}": count for reason, count in ledger.dead.items()}}


def lost_between(before: Ledger, now: Ledger) -> dict[str, int]:
    """Those that ended untrained between two moments, by reason."""
    past = lost(before)
    counts = {reason: count - past.get(reason, 0) for reason, count in lost(now).items()}
    return {reason: count for reason, count in counts.items() if count > 0}


def judged(ledger: Ledger) -> int:
    """Trajectories that were ended, or lie scored before the learner.

    Those that it has trained on are among the latter until their checkpoint is durable, which may take many steps.
    """
    return ledger.prompted - ledger.in_flight + ledger.stages.get("scored", 0)


def in_words(reason: str) -> str:
    """What groups that were lost for this reason did, and what to do about it."""
    if reason.startswith("dead: "):
        return f"went to the dead letters ({reason.removeprefix('dead: ')}); see `routershift dead RUN list`"
    return _IN_WORDS.get(reason, f"were dropped ({reason})")


class DropRate:
    """The share that was lost lately: of the last so many trajectories that came as far as the learner, or ended."""

    def __init__(self, window: int) -> None:
        """
        Args:
            window: trajectories over which the share is taken.
        """
        self._window = window
        self._mark: Ledger | None = None
        self._high = 0  # windows with a high share
        self.share: float | None = None  # None before the first window is full

    def note(self, ledger: Ledger) -> str:
        """Looks at the account; gives what is to be said of a high share now, mostly "".

        It is said of the first such window, the second, the fourth and so on.
        """
        if self._mark is None:
            self._mark = ledger
        seen = judged(ledger) - judged(self._mark)
        if seen < self._window:
            return ""
        by_reason, self._mark = lost_between(self._mark, ledger), ledger
        self.share = min(1.0, sum(by_reason.values()) / seen)
        if self.share <= MANY or self.share == 1.0:  # where none is left no step comes, and that is said elsewhere
            return ""
        self._high += 1
        if self._high & (self._high - 1):
            return ""
        return f"{self.share:.0%} of the last {seen} trajectories were dropped: {_parts(by_reason)}"


def _parts(by_reason: Mapping[str, int]) -> str:
    found = sorted(by_reason.items(), key=lambda item: -item[1])
    return "; ".join(f"{count} {in_words(reason)}" for reason, count in found)
