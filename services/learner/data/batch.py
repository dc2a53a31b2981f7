"""From groups of scored rollouts to micro-batches: which responses are learnt from together, and how they pack."""

import bisect
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from routershift.trajectory import Completion, Trajectory


@dataclass(frozen=True, slots=True)
class Sample:
    """A scored trajectory."""

    prompt_ids: NDArray[np.int32]  # [P], at least one token
    trajectory: Trajectory
    reward: float
    reference: bytes = b""  # a serialized Trajectory that refers to its arrays, where those here are lengths alone

    @property
    def completion(self) -> Completion:
        """What the model sampled, and learns from."""
        return self.trajectory.completion

    @property
    def input_tokens(self) -> int:
        """What the model reads: everything before the last sampled token, given tokens too."""
        return self.prompt_ids.size + self.trajectory.trained_length - 1


@dataclass(frozen=True, slots=True)
class Group:
    """All samples of one prompt."""

    group_id: str
    samples: tuple[Sample, ...]
    weight: float = 1.0  # of its advantages; 0: stopped early


@dataclass(frozen=True, slots=True)
class Weighted:
    """A sample and its advantages within its group."""

    sample: Sample
    advantages: tuple[float, ...]  # one for all its tokens, or one for each turn of the model
    kept: int = -1  # its place among all samples of the step, where its tokens are kept for people

    @property
    def lengths(self) -> tuple[int, ...]:
        """Sampled tokens that each of the advantages is of."""
        if len(self.advantages) == 1:
            return (self.sample.completion.token_ids.size,)
        return tuple(turn.tokens for turn in self.sample.trajectory.turns)


# Samples that one row of the input holds, one after the other.
Row = tuple[Weighted, ...]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """The rows of one forward pass.

    `filler` marks a copy that makes the ranks take the same number of passes: it is computed and counts for nothing.
    """

    rows: tuple[Row, ...]
    filler: bool = False

    @property
    def samples(self) -> list[Weighted]:
        return [weighted for row in self.rows for weighted in row]


def minibatches(
    groups: Sequence[Sequence[Weighted]], order: np.random.Generator, epochs: int, count: int
) -> Iterator[list[Weighted]]:
    """Each epoch's groups in an order of its own, cut into `count` shares; a group is never divided."""
    for _ in range(epochs):
        for share in np.array_split(order.permutation(len(groups)), min(count, len(groups))):
            yield [weighted for i in share for weighted in groups[i]]


def micro_batches(samples: Sequence[Weighted], max_tokens: int, ranks: int = 1) -> list[MicroBatch]:
    """Packs samples into rows as wide as the longest of them, and rows into passes of at most `max_tokens`.

    A single row may exceed `max_tokens`. The number of passes is a multiple of `ranks`, and all have the same number
    of rows but for one: pass i belongs to rank i % ranks.
    """
    rows = pack(samples)
    width = max(weighted.sample.input_tokens for weighted in samples)
    passes = -(-len(rows) // max(1, max_tokens // width))
    passes = -(-passes // ranks) * ranks
    shares = np.array_split(np.arange(len(rows)), min(passes, len(rows)))
    made = [MicroBatch(tuple(rows[i] for i in share)) for share in shares]
    return made + [MicroBatch((rows[0],), filler=True)] * (passes - len(made))


def flat_micro_batches(samples: Sequence[Weighted], max_tokens: int, ranks: int = 1) -> list[MicroBatch]:
    """Deals samples out to passes of one row each, of about as many tokens and at most `max_tokens`.

    A single sample may exceed `max_tokens`. The number of passes is a multiple of `ranks`: pass i belongs to rank
    i % ranks. The longest sample of a row comes first, so that those of one length stand together.
    """
    ordered = sorted(samples, key=lambda weighted: -weighted.sample.input_tokens)
    total = sum(weighted.sample.input_tokens for weighted in ordered)
    passes = -(-min(-(-total // max_tokens), len(ordered)) // ranks) * ranks
    dealt = _deal(ordered, passes)
    while any(tokens > max_tokens and len(row) > 1 for tokens, row in dealt):
        passes += ranks
        dealt = _deal(ordered, passes)
    made = [MicroBatch((tuple(row),)) for _, row in dealt if row]
    return made + [MicroBatch(((ordered[-1],),), filler=True)] * (passes - len(made))


def _deal(ordered: Sequence[Weighted], count: int) -> list[tuple[int, list[Weighted]]]:
    """Each sample to the row that has the fewest tokens so far; gives the tokens of each row and its samples."""
    rows: list[list[Weighted]] = [[] for _ in range(count)]
    filled = [(0, i) for i in range(count)]  # (tokens, row), a heap
    for weighted in ordered:
        tokens, row = filled[0]
        heapq.heapreplace(filled, (tokens + weighted.sample.input_tokens, row))
        rows[row].append(weighted)
    return [(tokens, rows[row]) for tokens, row in sorted(filled, key=lambda entry: entry[1])]


def pack(samples: Sequence[Weighted]) -> list[Row]:
    """Best-fit decreasing: each sample, the longest first, goes into the fullest row that has room for it."""
    ordered = sorted(samples, key=lambda weighted: -weighted.sample.input_tokens)
    rows: list[list[Weighted]] = []
    rooms: list[tuple[int, int]] = []  # (free tokens, row), ascending
    for weighted in ordered:
        needed = weighted.sample.input_tokens
        fit = bisect.bisect_left(rooms, (needed, -1))
        if fit == len(rooms):
            rows.append([])
            room, row = ordered[0].sample.input_tokens, len(rows) - 1
        else:
            room, row = rooms.pop(fit)
        rows[row].append(weighted)
        bisect.insort(rooms, (room - needed, row))
    return [tuple(row) for row in rows]
