"""Log-scores in one byte, and how far a score has moved since it was coded.

Code c means the log-score Q = -(c / 64)^2, for c from 0 to 254: fine where scores are large and matter, coarse where
they are small. c = round(64 sqrt(-s)), so with e(s) = (sqrt(-s) + 1/256) / 64

    |Q(s) - s| <= e(s) <= 0.0621

which is 0.016 at s = -1 (a probability of 0.37) and 0.047 at s = -9 (1e-4). Scores below -15.75 (1.4e-7) all become
code 254; in what follows they stand at -15.75.

A distance to a coded score s is measured between codes, d = |Q(now) - Q(s)|, never between a code and a live score:
that would be off by |Q(s) - s| on a router that has not moved at all, always to the same side. Then

    |d - |now - s|| <= e(now) + e(s), and d = 0 where now = s.

As the code is monotone, |Q(now) - Q(s)| is the difference of the two means; and rounding of 64 sqrt(-s) that falls
anywhere in its cell with equal chance changes the mean of Q by a constant 1 / (12 * 64^2), which the difference takes
away. So over many scores d is |now - s| without bias.

The router shift of a token is the mean of N = L K such distances (arXiv 2510.23027, equations 5 and 6), so its
logarithm gamma is off by at most the mean of e(now) + e(s), whatever the number of layers: at most 0.124, and by Jensen
at most 2 e(-m) if the mean score is -m, now as then. Independent places in their cells make it smaller by Hoeffding's
inequality: by more than t with a chance of at most 2 exp(-2 t^2 N / w^2), with w = 2 e the width of a cell. A sum over
layers (`layer_aggregation = "product"`) has L times these bounds, which is none.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# The score of a route that was not recorded. Scores are logarithms of probabilities, so never above 0.
MISSING_LOG_SCORE = 1.0
MISSING = 255  # its code

STEPS = 64.0
LAST = 254
_VALUES = -((np.arange(256) / STEPS) ** 2)
_VALUES[MISSING] = MISSING_LOG_SCORE
_TABLE = _VALUES.astype(np.float16)


def encode(log_scores: NDArray[np.float16]) -> NDArray[np.uint8]:
    """The nearest code of each score; `MISSING_LOG_SCORE` keeps a code of its own."""
    scores = log_scores.astype(np.float32)
    roots = np.sqrt(np.maximum(-scores, 0)) * STEPS
    codes: NDArray[np.uint8] = np.minimum(np.rint(roots), LAST).astype(np.uint8)
    codes[log_scores == MISSING_LOG_SCORE] = MISSING
    return codes


def decode(codes: NDArray[Any]) -> NDArray[np.float16]:
    """The score of each code, with the missing ones as `MISSING_LOG_SCORE`."""
    scores: NDArray[np.float16] = _TABLE[codes]
    return scores


def are_log_probabilities(scores: NDArray[Any]) -> bool:
    """Whether all are finite and at most 0, read off their bits: numpy computes with float16 in software.

    A sign bit and an exponent that is not all ones make them so, and +0, which is the logarithm of 1. So does every
    code but that of a missing route.
    """
    if scores.dtype == np.uint8:
        return bool((scores != MISSING).all())
    bits = scores.view(np.uint16)
    return bool((((bits ^ 0x8000) < 0x7C00) | (bits == 0)).all())
