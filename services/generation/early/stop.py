"""Which groups are sampled to their end, decided by the rewards of a first wave of their samples.

Where the first rewards are equal, the rest of the group are mostly equal to them too, and a group of equal rewards
teaches nothing. Stopping all such groups would bias what is trained on: those that would have turned out mixed would be
missing. So each goes on with a probability p > 0 and then weighs 1/p in the loss (D. Horvitz and D. Thompson, A
Generalization of Sampling Without Replacement From a Finite Universe, 1952): the expected sum over all prompted groups
is that of whole groups, whatever p is, since p depends on nothing that is sampled later.
"""

from collections.abc import Sequence
from math import sqrt

import numpy as np

from routershift.algorithms.advantages import drop_reason
from services.generation import metrics
from shared.settings import EarlyStopSettings

_WINDOW = 100  # groups over which shares are estimated, as they change while the policy learns
_DRAWS = 0xEA51E5  # keeps these draws apart from others of the seed; its value has no meaning


class _Share:
    """A share of groups, over about the last `_WINDOW` of them: (found + 1) / (seen + 2), 1/2 before the first."""

    def __init__(self) -> None:
        self._found = 0.0
        self._seen = 0.0

    def add(self, is_found: bool) -> None:
        kept = 1 - 1 / _WINDOW
        self._found = self._found * kept + is_found
        self._seen = self._seen * kept + 1

    @property
    def value(self) -> float:
        return (self._found + 1) / (self._seen + 2)


class EarlyStop:
    """The test of one generation process, with what it has seen so far.

    Its error is the probability that a decided group, one with equal first rewards, would have been mixed. It is
    estimated for each verifier and reward from the decided groups that went on.
    """

    def __init__(self, settings: EarlyStopSettings, samples: int) -> None:
        """Args: samples: in a whole group."""
        self.first = settings.first
        self._most = settings.error
        self._rest = samples - settings.first
        self._decided: dict[str, _Share] = {}  # by verifier: decided groups among all
        self._error: dict[tuple[str, float], _Share] = {}  # by verifier and reward: mixed groups among the decided

    def probability(self, verifier: str, rewards: Sequence[float]) -> float:
        """The probability p with which a group goes on, by the rewards of its first wave; 1 where they differ.

        1 as well while the error is above the setting. Below, p makes the variance of what is trained on, for all that
        is sampled, least, if groups with unequal rewards are alike in what they teach: with m samples in the first
        wave, r in the rest, a share d of decided groups and the error e, p^2 = e (1 + m / (r (1 - d))).
        """
        decided = self._decided.setdefault(verifier, _Share())
        is_decided = drop_reason(rewards) is not None
        decided.add(is_decided)
        if not is_decided:
            return 1.0
        error = self._error_of(verifier, rewards).value
        if error > self._most:
            return 1.0
        return min(1.0, sqrt(error * (1 + self.first / (self._rest * (1 - decided.value)))))

    def learn(self, verifier: str, rewards: Sequence[float]) -> None:
        """Takes the rewards of all samples of a decided group that went on."""
        is_mixed = drop_reason(rewards) is None
        self._error_of(verifier, rewards[: self.first]).add(is_mixed)
        metrics.DECIDED.labels("mixed" if is_mixed else "equal").inc()

    def _error_of(self, verifier: str, rewards: Sequence[float]) -> _Share:
        return self._error.setdefault((verifier, rewards[0]), _Share())


def goes_on(probability: float, seed: int | None) -> bool:
    """Draws whether a group goes on: the same again where it is sampled again. Args: seed: of the group."""
    return bool(np.random.default_rng(None if seed is None else (_DRAWS, seed)).random() < probability)
