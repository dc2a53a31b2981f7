"""Log-scores in one byte.

Code c means the log-score -(c / 64)^2, for c from 0 to 254: fine where scores are large and matter, coarse where they
are small. The nearest code to a score s is off by at most (sqrt(-s) + 1/256) / 64, so by 0.016 at s = -1 (a probability
of 0.37) and 0.047 at s = -9 (1e-4), beside the rounding of its value to float16. Scores below -15.75 (1.4e-7) all
become code 254.

The router shift of a token is the mean of |new - old| over layers and experts (arXiv 2510.23027), so its logarithm
gamma is off by at most the mean of those errors.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from routershift.trajectory import MISSING_LOG_SCORE

_STEPS = 64.0
_LAST = 254
_MISSING = 255
_VALUES = -((np.arange(256) / _STEPS) ** 2)
_VALUES[_MISSING] = MISSING_LOG_SCORE
_TABLE = _VALUES.astype(np.float16)


def encode(log_scores: NDArray[np.float16]) -> NDArray[np.uint8]:
    """The nearest code of each score; `MISSING_LOG_SCORE` keeps a code of its own."""
    scores = log_scores.astype(np.float32)
    roots = np.sqrt(np.maximum(-scores, 0)) * _STEPS
    codes: NDArray[np.uint8] = np.minimum(np.rint(roots), _LAST).astype(np.uint8)
    codes[log_scores == MISSING_LOG_SCORE] = _MISSING
    return codes


def decode(codes: NDArray[Any]) -> NDArray[np.float16]:
    """The score of each code, with the missing ones as `MISSING_LOG_SCORE`."""
    scores: NDArray[np.float16] = _TABLE[codes]
    return scores
