"""What recorded routes have to be."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from routershift.errors import CorruptDataError
from routershift.routing import layer_subset, score_code
from routershift.trajectory import RouterTrace

_MOST_PAIRED = 16  # ids of a token whose pairs are compared


def check_trace(trace: RouterTrace) -> None:
    """Raises CorruptDataError where recorded routes are none that a router can have made.

    A route that is missing may hold any ids. A router activates K different experts, so an id that a token has twice
    was not recorded: replaying it would weigh one expert twice and leave another out.
    """
    ids, experts = trace.expert_ids, trace.layout.num_experts
    if ids.size == 0:
        return
    layers = len(trace.layout.layer_ids)
    if trace.layers is not None and not layer_subset.are_drawn(trace.layers, layers):
        raise CorruptDataError(
            f"router_trace.layers is {trace.layers[0].tolist()} for the first token; expected one of each of "
            f"{trace.layers.shape[1]} strata of {layers} layers"
        )
    if (largest := int(ids.max())) >= experts:
        raise CorruptDataError(f"router_trace.expert_ids holds {largest}; the layout has {experts} experts")
    recorded = ~trace.missing
    scores = trace.log_scores
    if scores is not None and not score_code.are_log_probabilities(scores):
        if not trace.is_coded and not np.isfinite(scores).all():
            raise CorruptDataError(
                "router_trace.log_scores is not finite, so no log-probability; expected finite and <= 0"
            )
        if not score_code.are_log_probabilities(scores[recorded]):
            raise CorruptDataError("router_trace.log_scores holds a value that is no log-probability; expected <= 0")
    is_zero = largest == 0 or not (recorded.all() or ids[recorded].any())
    if trace.layout.top_k > 1 and recorded.any() and is_zero:
        raise CorruptDataError(
            "router_trace.expert_ids is all zero: K > 1 distinct experts were activated, so nothing was recorded"
        )
    twice = _has_equals(ids) & recorded
    if twice.any():
        token, layer = np.argwhere(twice)[0].tolist()
        raise CorruptDataError(
            f"router_trace.expert_ids of token {token}, layer {layer} is {ids[token, layer].tolist()}; "
            "a router activates K different experts"
        )


def _has_equals(ids: NDArray[Any]) -> NDArray[np.bool_]:
    """[T, L] of [T, L, K]: True where an id stands twice. For few K, comparing all pairs is faster than sorting."""
    if ids.shape[-1] > _MOST_PAIRED:
        ordered = np.sort(ids, axis=-1)
        return np.asarray((ordered[..., 1:] == ordered[..., :-1]).any(axis=-1))
    found = np.zeros(ids.shape[:-1], np.bool_)
    columns = np.moveaxis(ids, -1, 0).copy()
    for k, column in enumerate(columns):
        for other in columns[:k]:
            found |= column == other
    return found
