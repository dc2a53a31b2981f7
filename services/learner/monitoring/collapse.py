"""Notices when the reward of a run falls back."""

from typing import Self

from services.learner.settings import Settings


class RewardWatch:
    """A running mean of the rewards of groups, and whether it has lost too much of its best value.

    The mean is plain over the first `window` groups and exponential with that window afterwards; nothing is judged
    before it is full.

    Args:
        window: groups.
        fraction: of the best mean's absolute value that may be lost.
    """

    def __init__(self, window: int, fraction: float) -> None:
        self._window = window
        self._fraction = fraction
        self.restart()

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """As the settings want it; None where they want none."""
        collapse = settings.learner.collapse
        return cls(collapse.window * settings.run.groups_per_step, collapse.fraction) if collapse.window else None

    def restart(self) -> None:
        """Forgets all it has seen."""
        self.mean = 0.0
        self._seen = 0
        self._best = float("-inf")

    def add(self, reward: float) -> bool:
        """Takes the mean reward of a group; True while the run has collapsed."""
        self._seen = min(self._seen + 1, self._window)
        self.mean += (reward - self.mean) / self._seen
        if self._seen < self._window:
            return False
        self._best = max(self._best, self.mean)
        return self.mean < self._best - self._fraction * abs(self._best)
