"""What the trainer refuses to train on, each by its name."""

import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.routing.score_code import MISSING_LOG_SCORE
from services.learner.data.batch import Group
from services.learner.trainer import Trainer
from shared.errors import CorruptDataError, InvalidInputError
from tests.support.models import EXPERTS, MAX_MODEL_LEN, TOP_K, VOCABULARY
from tests.support.rollouts import layout
from tests.support.training import filled, make, trace_of, with_completion, with_trace


def twice(ids: NDArray[Any]) -> NDArray[Any]:
    copy = ids.copy()
    copy[0, 1] = 3
    return copy


FAULTS: dict[str, tuple[Callable[[Group], Group], type[Exception], str]] = {
    "token out of the vocabulary": (
        lambda g: with_completion(g, lambda c: replace(c, token_ids=filled(c.token_ids, VOCABULARY))),
        InvalidInputError,
        f"token_ids spans .* {VOCABULARY}; the model has tokens 0 to {VOCABULARY - 1}",
    ),
    "negative prompt token": (
        lambda g: replace(g, samples=(replace(g.samples[0], prompt_ids=np.array([-1], np.int32)),)),
        InvalidInputError,
        "prompt_ids spans -1",
    ),
    "empty response": (
        lambda g: with_completion(g, lambda c: replace(c, token_ids=c.token_ids[:0])),
        InvalidInputError,
        "is empty",
    ),
    "longer than the model": (
        lambda g: replace(g, samples=(replace(g.samples[0], prompt_ids=np.ones(MAX_MODEL_LEN, np.int32)),)),
        InvalidInputError,
        f"the model takes {MAX_MODEL_LEN}",
    ),
    "a log-prob too many": (
        lambda g: with_completion(g, lambda c: replace(c, logprobs=np.append(c.logprobs, np.float32(0)))),
        CorruptDataError,
        "logprobs",
    ),
    "versions that do not cover": (
        lambda g: with_completion(g, lambda c: replace(c, versions=())),
        CorruptDataError,
        "versions.*: 0",
    ),
    "log-prob not finite": (
        lambda g: with_completion(g, lambda c: replace(c, logprobs=filled(c.logprobs, math.nan))),
        CorruptDataError,
        "not finite",
    ),
    "reward not finite": (
        lambda g: replace(g, samples=(replace(g.samples[0], reward=math.inf),)),
        CorruptDataError,
        "not finite",
    ),
    "no trace": (
        lambda g: with_completion(g, lambda c: replace(c, router_trace=None)),
        InvalidInputError,
        "router_trace is absent",
    ),
    "trace of another model": (
        lambda g: with_trace(g, layout=RouterLayout((0, 1), EXPERTS, TOP_K, ScoreFunction.SOFTMAX)),
        InvalidInputError,
        r"layer_ids is \(0, 1\), the model here has \(0, 1, 2\)",
    ),
    "layers of no strata": (
        lambda g: with_trace(
            g,
            expert_ids=trace_of(g).expert_ids[:, :2],
            log_scores=trace_of(g).scores[:, :2],
            layers=np.tile(np.array([1, 2], np.uint8), (len(trace_of(g).expert_ids), 1)),
        ),
        CorruptDataError,
        r"layers is \[1, 2\] for the first token; expected one of each of 2 strata of 3 layers",
    ),
    "trace of another length": (
        lambda g: with_trace(g, expert_ids=np.zeros((99, 3, 2), np.uint8)),
        CorruptDataError,
        r"\(99, 3, 2\)",
    ),
    "score not finite": (
        lambda g: with_trace(g, log_scores=filled(trace_of(g).scores, -math.inf)),
        CorruptDataError,
        "log_scores is not finite",
    ),
    "score that is no log-probability": (
        lambda g: with_trace(g, log_scores=filled(trace_of(g).scores, 0.5)),
        CorruptDataError,
        "log_scores holds a value that is no log-probability",
    ),
    "one expert twice": (
        lambda g: with_trace(g, expert_ids=twice(trace_of(g).expert_ids)),
        CorruptDataError,
        r"expert_ids of token 0, layer 1 is \[3, 3\]; a router activates K different experts",
    ),
    "nothing recorded": (
        lambda g: with_trace(g, expert_ids=np.zeros_like(trace_of(g).expert_ids)),
        CorruptDataError,
        "expert_ids is all zero",
    ),
    "expert out of range": (
        lambda g: with_trace(g, expert_ids=filled(trace_of(g).expert_ids, EXPERTS)),
        CorruptDataError,
        f"holds {EXPERTS}; the layout has {EXPERTS} experts",
    ),
}


@pytest.fixture(scope="module")
def checker(folder: Path) -> Trainer:
    return make(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_group_that_cannot_be_trained_on_is_refused_by_name(checker: Trainer, fresh: list[Group], fault: str) -> None:
    assert checker.layout == layout()
    checker.check(fresh[0])
    spoil, error, named = FAULTS[fault]
    with pytest.raises(error, match=rf"^group group-0, sample \d: .*{named}"):
        checker.check(spoil(fresh[0]))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"router_shift": {"layer_aggregation": "product"}}, "router_shift.layer_aggregation product"),
        ({"router_shift": {"mismatch_baseline": "subtract"}}, "router_shift.mismatch_baseline subtract"),
        ({"routing_replay": "r3_weights"}, "routing_replay r3_weights"),
    ],
)
def test_scores_of_one_byte_are_refused_where_their_error_has_no_bound(
    checker: Trainer, folder: Path, fresh: list[Group], settings: dict[str, Any], named: str
) -> None:
    coded = with_trace(fresh[0], log_scores=trace_of(fresh[0]).coded().log_scores)
    checker.check(coded)
    exact = make(folder, **settings)
    exact.check(fresh[0])
    with pytest.raises(InvalidInputError, match=rf"log_scores is uint8; learner\.{re.escape(named)} needs float16"):
        exact.check(coded)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"router_shift": {"layer_aggregation": "product"}}, "router_shift.layer_aggregation product"),
        ({"routing_replay": "r3"}, "routing_replay r3"),
    ],
)
def test_routes_of_some_layers_are_refused_where_all_are_needed(
    checker: Trainer, folder: Path, fresh: list[Group], settings: dict[str, Any], named: str
) -> None:
    trace = trace_of(fresh[0]).thinned(2, seed=0)
    some = with_trace(fresh[0], expert_ids=trace.expert_ids, log_scores=trace.log_scores, layers=trace.layers)
    checker.check(some)
    with pytest.raises(InvalidInputError, match=rf"has 2 of 3 layers; learner\.{re.escape(named)} needs all"):
        make(folder, **settings).check(some)


def test_a_route_that_is_missing_may_hold_any_experts(checker: Trainer, fresh: list[Group]) -> None:
    scores = trace_of(fresh[0]).scores.copy()
    scores[0, 1] = MISSING_LOG_SCORE
    checker.check(with_trace(fresh[0], expert_ids=twice(trace_of(fresh[0]).expert_ids), log_scores=scores))
