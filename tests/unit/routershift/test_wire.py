"""The wire format: what goes in comes out, without a copy, and nothing wrong gets through."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from routershift import wire
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.routing.score_code import MISSING_LOG_SCORE
from routershift.trajectory import (
    Completion,
    FinishReason,
    RouterTrace,
    TopLogprobs,
    VersionSpan,
    spans_of,
    versions_of,
)
from routershift.v1 import trajectory_pb2 as pb
from shared.errors import CorruptDataError, InvalidInputError

LAYOUT = RouterLayout((1, 2, 4), num_experts=8, top_k=2, score_function=ScoreFunction.SOFTMAX)


def completion(tokens: int = 5, layout: RouterLayout = LAYOUT, seed: int = 0) -> Completion:
    rng = np.random.default_rng(seed)
    shape = (tokens, len(layout.layer_ids), layout.top_k)
    first, step = rng.integers(0, layout.num_experts, shape[:2]), rng.integers(1, layout.num_experts, shape[:2])
    ids = np.stack([first, (first + step) % layout.num_experts], axis=-1)  # a router activates different experts
    return Completion(
        index=1,
        token_ids=rng.integers(0, 24, tokens).astype(np.int32),
        logprobs=-rng.random(tokens, dtype=np.float32),
        versions=(VersionSpan(3, tokens),) if tokens else (),
        finish_reason=FinishReason.STOP,
        router_trace=RouterTrace(
            layout,
            ids.astype(layout.id_dtype),
            (-rng.random(shape)).astype(np.float16),
        ),
        text="1+2",
    )


def trip(original: Completion) -> Completion:
    return wire.decode_completion(pb.Completion.FromString(wire.encode_completion(original).SerializeToString()))


@pytest.mark.parametrize("experts", [8, 256, 257, 65536])
@pytest.mark.parametrize("tokens", [0, 1, 17])
def test_a_completion_survives_the_wire(tokens: int, experts: int) -> None:
    original = completion(tokens, replace(LAYOUT, num_experts=experts))
    result = trip(original)
    assert result.router_trace is not None
    assert original.router_trace is not None
    np.testing.assert_array_equal(result.token_ids, original.token_ids)
    np.testing.assert_array_equal(result.logprobs, original.logprobs)
    np.testing.assert_array_equal(result.router_trace.expert_ids, original.router_trace.expert_ids)
    np.testing.assert_array_equal(result.router_trace.log_scores, original.router_trace.log_scores)
    assert result.router_trace.layout == original.router_trace.layout
    assert result.router_trace.expert_ids.dtype == (np.uint8 if experts <= 256 else np.uint16)
    assert (result.versions, result.finish_reason, result.text) == (original.versions, original.finish_reason, "1+2")


def test_reading_copies_nothing_and_cannot_be_written() -> None:
    message = wire.encode_completion(completion())
    array = wire.decode_tensor(message.logprobs, "logprobs", "float32", 1)
    assert not array.flags.owndata
    assert not array.flags.writeable


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32, np.int64, np.float16, np.float32]),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5),
    )
)
def test_every_tensor_survives_the_wire(array: NDArray[Any]) -> None:
    result = wire.decode_tensor(wire.encode_tensor(array), "field", array.dtype.name, array.ndim)
    np.testing.assert_array_equal(result, array)


def test_a_missing_route_is_explicit() -> None:
    original = completion()
    assert original.router_trace is not None
    original.router_trace.scores[2, 1] = MISSING_LOG_SCORE
    result = trip(original).router_trace
    assert result is not None
    assert np.argwhere(result.missing).tolist() == [[2, 1]]


def with_trace(**changes: Any) -> Completion:
    original = completion()
    assert original.router_trace is not None
    return replace(original, router_trace=replace(original.router_trace, **changes))


def test_a_trace_of_ids_alone_says_that_it_has_no_scores() -> None:
    result = trip(with_trace(log_scores=None)).router_trace
    assert result is not None
    assert result.log_scores is None
    assert not result.missing.any()
    with pytest.raises(InvalidInputError, match=r"set generation\.router_export to topk"):
        _ = result.scores


def test_a_full_trace_brings_the_logits_of_all_experts() -> None:
    logits = np.random.default_rng(0).normal(0, 3, (5, 3, 8)).astype(np.float16)
    result = trip(with_trace(logits=logits)).router_trace
    assert result is not None
    assert result.logits is not None
    np.testing.assert_array_equal(result.logits, logits)


def test_scores_in_one_byte_stay_so_and_are_read_as_scores() -> None:
    original = with_trace().router_trace
    assert original is not None
    original.scores[2, 1] = MISSING_LOG_SCORE
    coded = original.coded()
    message = wire.encode_trace(coded)
    assert len(message.log_scores.data) == original.scores.size
    result = wire.decode_trace(message, tokens=5)
    assert result.log_scores is not None
    assert result.log_scores.dtype == np.uint8
    assert result.coded() is result
    np.testing.assert_allclose(result.scores, original.scores, atol=0.016)
    assert np.argwhere(result.missing).tolist() == [[2, 1]]


def test_routes_of_some_layers_say_which() -> None:
    original = with_trace().router_trace
    assert original is not None
    some = original.thinned(2, seed=5)
    message = wire.encode_trace(some)
    assert list(message.expert_ids.shape) == [5, 2, 2]
    result = wire.decode_trace(message, tokens=5)
    assert result.layers is not None
    assert result.nbytes == some.nbytes
    at = result.layers[..., None].astype(int)
    assert result.expert_ids.tolist() == np.take_along_axis(original.expert_ids, at, axis=1).tolist()
    assert result.scores.tolist() == np.take_along_axis(original.scores, at, axis=1).tolist()
    assert original.thinned(3, seed=5) is original
    message.layers.data = message.layers.data[1:] + b"\0"
    with pytest.raises(CorruptDataError, match=r"router_trace\.crc32"):
        wire.decode_trace(message, tokens=5)
    message = wire.encode_trace(replace(original, layers=np.tile(np.arange(3, dtype=np.uint8), (5, 1))))
    with pytest.raises(CorruptDataError, match=r"layers has shape \(5, 3\); expected \[tokens, fewer than all"):
        wire.decode_trace(message, tokens=5)


def test_top_logprobs_survive_the_wire() -> None:
    top = TopLogprobs(np.arange(10, dtype=np.int32).reshape(5, 2), -np.ones((5, 2), np.float32))
    result = trip(replace(completion(), top_logprobs=top)).top_logprobs
    assert result is not None
    np.testing.assert_array_equal(result.token_ids, top.token_ids)
    np.testing.assert_array_equal(result.logprobs, top.logprobs)


def damage(field: str) -> pb.Completion:
    """A message that is wrong in one way."""
    original = completion()
    trace = original.router_trace
    assert trace is not None
    message = wire.encode_completion(original)
    match field:
        case "crc32":
            message.router_trace.crc32 ^= 1
        case "shape":
            message.router_trace.CopyFrom(wire.encode_completion(completion(tokens=4)).router_trace)
        case "all zero":
            zeros = RouterTrace(trace.layout, np.zeros_like(trace.expert_ids), trace.log_scores)
            message.router_trace.CopyFrom(wire.encode_trace(zeros))
        case "expert out of range":
            trace.expert_ids[0, 0, 0] = 8
            message.router_trace.CopyFrom(wire.encode_trace(trace))
        case "positive score":
            trace.scores[0, 0, 0] = 0.5
            message.router_trace.CopyFrom(wire.encode_trace(trace))
        case "missing code":
            coded = trace.coded()
            assert coded.log_scores is not None
            coded.log_scores[0, 0, 0] = 255  # one of two
            message.router_trace.CopyFrom(wire.encode_trace(coded))
        case "nan score":
            trace.scores[0, 0, 0] = np.nan
            message.router_trace.CopyFrom(wire.encode_trace(trace))
        case "logits":
            logits = np.zeros((5, 3, 7), np.float16)
            message.router_trace.CopyFrom(wire.encode_trace(replace(trace, logits=logits)))
        case "logits changed":
            logits = np.zeros((5, 3, 8), np.float16)
            message.router_trace.CopyFrom(wire.encode_trace(replace(trace, logits=logits)))
            message.router_trace.logits.data = message.router_trace.logits.data[:-1] + b"\1"
        case "top logprobs":
            top = TopLogprobs(np.zeros((4, 2), np.int32), np.zeros((4, 2), np.float32))
            message.top_logprobs.CopyFrom(wire.encode_completion(replace(original, top_logprobs=top)).top_logprobs)
        case "score function":
            message.router_trace.layout.score_function = pb.SCORE_FUNCTION_UNSPECIFIED
        case "top_k":
            message.router_trace.layout.top_k = 9
        case "bytes":
            message.logprobs.data = message.logprobs.data[:-1]
        case "dtype":
            message.token_ids.dtype = pb.D_TYPE_FLOAT32
        case "rank":
            message.token_ids.shape.append(1)
        case "lengths":
            message.logprobs.CopyFrom(wire.encode_tensor(np.zeros(4, np.float32)))
        case "logprob":
            message.logprobs.CopyFrom(wire.encode_tensor(np.full(5, np.inf, np.float32)))
        case "versions":
            message.versions[0].tokens = 4
    return message


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("crc32", "router_trace.crc32"),
        ("shape", r"shape \(4, 3, 2\); expected \[tokens, moe_layers, top_k\] = \(5, 3, 2\)"),
        ("all zero", "all zero"),
        ("expert out of range", "holds 8; the layout has 8 experts"),
        ("positive score", "no log-probability"),
        ("missing code", "no log-probability"),
        ("nan score", "no log-probability"),
        ("logits", r"logits has shape \(5, 3, 7\); expected \[tokens, moe_layers, num_experts\]"),
        ("logits changed", "router_trace.crc32"),
        ("top logprobs", r"top_logprobs has shapes \(4, 2\)"),
        ("score function", "layout.score_function"),
        ("top_k", "layout.top_k is 9 of 8 experts"),
        ("bytes", "completion.logprobs.data has 19 bytes"),
        ("dtype", "completion.token_ids.dtype is float32; expected int32"),
        ("rank", "expected 1 axes"),
        ("lengths", "completion.logprobs has 4 entries; token_ids has 5"),
        ("logprob", "completion.logprobs holds"),
        ("versions", "completion.versions covers 4 tokens"),
    ],
)
def test_what_is_wrong_is_refused_by_name(field: str, text: str) -> None:
    with pytest.raises(CorruptDataError, match=text):
        wire.decode_completion(damage(field))


@given(st.binary(max_size=200))
def test_hostile_bytes_are_refused_or_decoded_but_never_crash(data: bytes) -> None:
    message = pb.Completion(
        token_ids=pb.Tensor(dtype=pb.D_TYPE_INT32, shape=[len(data) // 4], data=data),
        logprobs=pb.Tensor(dtype=pb.D_TYPE_FLOAT32, shape=[len(data) // 4], data=data),
        versions=[pb.VersionSpan(tokens=len(data) // 4)],
    )
    try:
        result = wire.decode_completion(message)
    except CorruptDataError:
        return
    assert (result.logprobs <= 1e-3).all()


@given(st.lists(st.integers(0, 3), max_size=30))
def test_version_spans_are_a_run_length_code(versions: list[int]) -> None:
    array = np.array(versions, dtype=np.int64)
    spans = spans_of(array)
    np.testing.assert_array_equal(versions_of(spans), array)
    assert all(a.version != b.version for a, b in pairwise(spans))


@pytest.mark.parametrize(
    "values", [{}, {"a": 42, "b": [1.5, None, True, {"c": [[]]}], "d": {"": "x"}}, {"n": -(2**53)}, {"n": 1e300}]
)
def test_json_values_come_back_from_a_struct(values: dict[str, object]) -> None:
    decoded = wire.decode_struct(wire.encode_struct(values))
    assert decoded == values
    assert json.dumps(decoded, sort_keys=True) == json.dumps(values, sort_keys=True)  # 42 is no 42.0


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_struct_with_a_number_that_json_does_not_have_is_refused(number: float) -> None:
    message = wire.encode_struct({"rows": [{"answer": 1}]})
    message.fields["rows"].list_value.values[0].struct_value.fields["answer"].number_value = number
    with pytest.raises(InvalidInputError, match=r"rows\[0\]\.answer is (nan|inf); expected a finite number"):
        wire.decode_struct(message)
