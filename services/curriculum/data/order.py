"""The order of training: which row comes at which index, as a pure function of seed and index."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_BLOCK = 1000  # prompts in which every source has exactly its share


@dataclass(frozen=True)
class Share:
    """A source in the mixture."""

    rows: int
    repeats: int
    weight: float | None  # None: by its rows


class Order:
    """Shuffled by seed anew in every epoch, mixed by weight or by size.

    By size, an epoch goes through every row of every source, `repeats` times, in one shuffled order. By weight, every
    block of 1000 prompts has as many of each source as its weight says (at least one), in shuffled order, and each
    source goes through epochs of its own.
    """

    def __init__(self, sources: Sequence[Share], seed: int) -> None:
        """Args: sources: in order; rows are counted through all of them. None may be without rows."""
        self._sources, self._seed = sources, seed
        self._first = np.cumsum([0, *(source.rows for source in sources)])
        weights = [source.weight for source in sources if source.weight is not None]
        self._quotas = _apportion(weights) if weights else []  # of a block; none by size
        # Of the last epochs and blocks: indexes are asked for in order.
        self._permuted = lru_cache(maxsize=2 * len(sources) + 2)(self._permute)

    @property
    def epoch_size(self) -> int:
        """Prompts in which every row has come: by weight, those of the source that takes longest."""
        if not self._quotas:
            return sum(source.rows * source.repeats for source in self._sources)
        needed = zip(self._sources, self._quotas, strict=True)
        return max(-(-source.rows * source.repeats * _BLOCK // quota) for source, quota in needed)

    def row(self, index: int) -> int:
        """The row at an index, both counted from 0, rows through all sources in order."""
        if not self._quotas:
            epoch, place = divmod(index, self.epoch_size)
            return int(self._permuted(None, epoch)[place])
        block, place = divmod(index, _BLOCK)
        order = self._permuted(-1, block)
        source = int(order[place])
        drawn = block * self._quotas[source] + int(np.count_nonzero(order[:place] == source))
        size = self._sources[source].rows * self._sources[source].repeats
        epoch, place = divmod(drawn, size)
        return int(self._permuted(source, epoch)[place])

    def _permute(self, source: int | None, number: int) -> NDArray[np.int64]:
        """The rows of an epoch of all sources (None) or of one; for -1, the sources of a block."""
        # The kind of draw keeps the sequences apart.
        kind = 0 if source is None else source + 2
        random = np.random.default_rng((self._seed, kind, number))
        if source == -1:
            return random.permutation(np.repeat(np.arange(len(self._quotas)), self._quotas))
        chosen = range(len(self._sources)) if source is None else (source,)
        rows = [np.tile(np.arange(self._first[i], self._first[i + 1]), self._sources[i].repeats) for i in chosen]
        return random.permutation(np.concatenate(rows))


def _apportion(weights: Sequence[float]) -> list[int]:
    """Whole numbers in proportion to weights that sum to a block, at least 1 each, by the largest remainders."""
    exact = np.array(weights) / sum(weights) * (_BLOCK - len(weights))
    quotas = np.floor(exact).astype(int) + 1
    order = np.argsort(-(exact - np.floor(exact)), kind="stable")
    quotas[order[: _BLOCK - int(quotas.sum())]] += 1
    return [int(quota) for quota in quotas]
