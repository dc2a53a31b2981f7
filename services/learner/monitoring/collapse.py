"""Notices when the reward of a run falls back."""


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
