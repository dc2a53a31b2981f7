"""What changed between two versions of the weights: of files, or of tensors in memory.

At the learning rates of large models an update changes about 1 % of the entries of weights in bfloat16: most steps
are smaller than half of an entry's last bit. Both are therefore read as 16-bit words, whatever they hold. For each word
that differs a delta has the distance from the last one (`gaps`) and the new word (`words`), uint16 [N] both; that of a
file is a safetensors file. Those are 4 bytes a change: with 1 % of the words 2 % of the whole. XOR, compressed by
zlib, takes as much at twenty times the processor time, and 32-bit positions take a half more (docs/benchmarks.md).

A delta does not know whether it was applied to the right base: whoever applies it compares the SHA-256 of the result.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from shared.errors import CorruptDataError

FOLDER = "delta"
WORD = np.dtype("<u2")
_FARTHEST = 0xFFFF  # distance that a gap can hold; on the way to a word farther off, unchanged ones are repeated
_CHUNK = 1 << 24  # words that are worked on at a time
_LEAST = 4  # words for each that changes, 4 bytes: where there are fewer, a delta takes more than half of the file

Words = NDArray[np.uint16]


def write(base: Path, new: Path, delta: Path) -> bool:
    """Writes what makes `new` of `base`; False, and nothing is written, where that takes more than half of the file.

    It is also False where the files differ in size, or have an odd number of bytes.

    Raises:
        OSError, SafetensorError: a file cannot be read, or the disk takes no writes.
    """
    size = new.stat().st_size
    if base.stat().st_size != size or size % WORD.itemsize:
        return False
    old, words = (np.memmap(path, dtype=WORD, mode="r") for path in (base, new))
    last, count, gaps = 0, 0, list[Words]()
    changed: list[Words] = []
    for begin in range(0, len(words), _CHUNK):
        chunk = words[begin : begin + _CHUNK]
        indices = reachable(np.flatnonzero(old[begin : begin + _CHUNK] != chunk) + begin, last)
        count += len(indices)
        if count * _LEAST > len(words):
            return False
        if len(indices):
            gaps.append(gaps_of(indices, last))
            changed.append(words[indices])
            last = int(indices[-1])
    empty = np.empty(0, WORD)
    save_file({"gaps": np.concatenate([empty, *gaps]), "words": np.concatenate([empty, *changed])}, delta)
    return True


def apply(delta: Path, file: Path) -> None:
    """Changes a file in place, from the base of the delta to what it was made for.

    Raises:
        CorruptDataError: it is no delta, or one of a longer file.
        OSError: a file cannot be read or written.
    """
    try:
        tensors = load_file(delta)
    except SafetensorError as error:
        raise CorruptDataError(f"{delta} is no delta of weights: {error}") from None
    gaps, changed = tensors.get("gaps"), tensors.get("words")
    if gaps is None or changed is None or gaps.shape != changed.shape or {gaps.dtype, changed.dtype} != {WORD}:
        raise CorruptDataError(f"{delta} is no delta of weights: expected uint16 gaps and words of one length")
    try:
        change(np.memmap(file, dtype=WORD, mode="r+"), gaps, changed)
    except CorruptDataError as error:
        raise CorruptDataError(f"{delta}: {error}") from None


def change(words: Words, gaps: Words, changed: Words) -> None:
    """Applies a delta to words in place. Raises CorruptDataError where it is one of more words."""
    for indices, values in _changes(gaps, changed):
        if indices[-1] >= len(words):
            raise CorruptDataError(f"word {indices[-1]} is to change, and there are {len(words)}")
        words[indices] = values


def gaps_of(indices: NDArray[np.int64], last: int = 0) -> Words:
    """Distances of indices that are `reachable`, each from the one before; that of the first from `last`."""
    return np.diff(indices, prepend=last).astype(WORD)


def reachable(indices: NDArray[np.int64], last: int = 0) -> NDArray[np.int64]:
    """The indices, ascending, with others between them where the next is too far from the one before."""
    steps = np.diff(indices, prepend=last)
    far = np.flatnonzero(steps > _FARTHEST)
    if not far.size:
        return indices
    between = [np.arange(indices[i] - steps[i] + _FARTHEST, indices[i], _FARTHEST) for i in far]
    return np.sort(np.concatenate([indices, *between]))


def _changes(gaps: Words, changed: Words) -> Iterator[tuple[NDArray[np.int64], Words]]:
    """Indices of words and what they become, some at a time."""
    last = 0
    for begin in range(0, len(gaps), _CHUNK):
        indices = last + np.cumsum(gaps[begin : begin + _CHUNK], dtype=np.int64)
        last = int(indices[-1])
        yield indices, changed[begin : begin + _CHUNK]
