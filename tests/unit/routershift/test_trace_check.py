"""Which router traces are refused, against loops over their entries."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.routing.score_code import MISSING_LOG_SCORE
from routershift.routing.trace_check import check_trace
from routershift.trajectory import RouterTrace
from shared.errors import CorruptDataError

SCORES = [-0.5, -1e-7, -60000.0, -0.0, 0.0, MISSING_LOG_SCORE, 0.5, 6e-8, math.inf, -math.inf, math.nan, -math.nan]


def refusal(ids: list[list[int]], scores: list[list[float]] | None, experts: int) -> str | None:
    """Words of the first refusal, from one layer's K ids and scores of each token."""
    top_k = len(ids[0])
    if any(each >= experts for token in ids for each in token):
        return "the layout has"
    is_missing = [scores is not None and all(s == MISSING_LOG_SCORE for s in scores[t]) for t in range(len(ids))]
    for token in scores or []:
        if not all(math.isfinite(each) for each in token):
            return "not finite"
    for missing, token in zip(is_missing, scores or [], strict=False):
        if not missing and any(each > 0 for each in token):
            return "no log-probability"
    recorded = [token for missing, token in zip(is_missing, ids, strict=True) if not missing]
    if top_k > 1 and recorded and not any(each for token in recorded for each in token):
        return "all zero"
    if any(len(set(token)) < top_k for token in recorded):
        return "K different experts"
    return None


@st.composite
def traces(draw: st.DrawFn) -> tuple[list[list[int]], list[list[float]] | None, int]:
    tokens, top_k = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 3, 18]))
    experts = 24
    ids = [
        draw(st.one_of(st.permutations(range(experts)).map(lambda p: p[:top_k]), st.just([0] * top_k)))
        for _ in range(tokens)
    ]
    if draw(st.booleans()):
        ids[0][draw(st.integers(0, top_k - 1))] = draw(st.integers(0, experts))
    usual = st.sampled_from(SCORES[:5])
    row = st.one_of(
        st.lists(usual, min_size=top_k, max_size=top_k),
        st.just([MISSING_LOG_SCORE] * top_k),
        st.lists(st.sampled_from(SCORES), min_size=top_k, max_size=top_k),
    )
    scores = [draw(row) for _ in range(tokens)] if draw(st.booleans()) else None
    return [list(each) for each in ids], scores, experts


@given(traces())
def test_a_trace_is_refused_for_what_no_router_can_have_made(
    drawn: tuple[list[list[int]], list[list[float]] | None, int],
) -> None:
    ids, scores, experts = drawn
    layout = RouterLayout((3,), experts, len(ids[0]), ScoreFunction.SOFTMAX)
    log_scores = None if scores is None else np.array(scores, np.float16)[:, None]
    trace = RouterTrace(layout, np.array(ids, np.uint8)[:, None], log_scores)
    wanted = refusal(ids, None if log_scores is None else log_scores[:, 0].tolist(), experts)
    if wanted is None:
        check_trace(trace)
        is_missing = [[scores is not None and set(scores[t]) == {MISSING_LOG_SCORE}] for t in range(len(ids))]
        assert trace.missing.tolist() == is_missing
    else:
        with pytest.raises(CorruptDataError, match=wanted):
            check_trace(trace)
