"""Routes of some layers: which ones a token has, and what the shift of the others is taken to be.

The L routed layers are cut into M strata of consecutive ones, as equal as they can be. Each token has one layer of each
stratum, drawn for it alone, which stands for the n_j layers of its stratum: with s_l the shift of layer l
(arXiv 2510.23027, equation 5), the mean over layers (equation 6) is estimated by

    D' = sum over j of (n_j / L) s_(drawn in j),    whose expectation is D = sum over l of s_l / L

for every token, whatever the shifts. With r_j the range of the shifts in stratum j and
R^2 = sum over j of (n_j r_j / L)^2, which is r^2 / M where strata and ranges are equal,

    |D' - D| <= sum over j of n_j r_j / L                 always
    P(|D' - D| > t) <= 2 exp(-2 t^2 / R^2)                by Hoeffding's inequality
    gamma <= E[exp(-D')] <= gamma exp(R^2 / 8)            by Jensen's inequality and Hoeffding's lemma
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Places of layers travel in one byte, in which this one is none.
NO_LAYER = 255


def bounds(layers: int, chosen: int) -> NDArray[np.int64]:
    """[M + 1]: where the M = `chosen` strata of L = `layers` begin, and where the last ends."""
    places: NDArray[np.int64] = np.arange(chosen + 1) * layers // chosen
    return places


def stands_for(layers: int, chosen: int) -> NDArray[np.uint8]:
    """[M]: n_j, for how many layers the one of a stratum stands."""
    return np.diff(bounds(layers, chosen)).astype(np.uint8)


def draw(tokens: int, layers: int, chosen: int, seed: int) -> NDArray[np.uint8]:
    """[T, M]: the layer of each stratum that each token has."""
    strata = bounds(layers, chosen)
    drawn: NDArray[np.int64] = np.random.default_rng(seed).integers(strata[:-1], strata[1:], (tokens, chosen))
    return drawn.astype(np.uint8)


def are_drawn(places: NDArray[Any], layers: int) -> bool:
    """Whether `draw` can have made them: one of each stratum."""
    strata = bounds(layers, places.shape[1])
    return bool(((places >= strata[:-1]) & (places < strata[1:])).all())
