"""Between protobuf messages and numpy domain types: the only place that knows both.

Reading is zero-copy and checks everything that a wrong or hostile sender could get wrong; a message that fails
raises CorruptDataError with the field, the value and what was expected.
"""

import math
import zlib
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import numpy as np
from google.protobuf import struct_pb2
from numpy.typing import NDArray

from routershift.errors import CorruptDataError, InvalidInputError
from routershift.routing import score_code
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.trajectory import (
    Completion,
    FinishReason,
    RouterExport,
    RouterTrace,
    ScoreDtype,
    SpecialToken,
    TopLogprobs,
    VersionSpan,
    check_trace,
)
from routershift.v1 import trajectory_pb2 as pb

_DTYPES: dict["pb.DType.ValueType", np.dtype[Any]] = {
    pb.D_TYPE_UINT8: np.dtype("u1"),
    pb.D_TYPE_UINT16: np.dtype("<u2"),
    pb.D_TYPE_INT32: np.dtype("<i4"),
    pb.D_TYPE_INT64: np.dtype("<i8"),
    pb.D_TYPE_FLOAT16: np.dtype("<f2"),
    pb.D_TYPE_FLOAT32: np.dtype("<f4"),
}
_DTYPE_CODES = {dtype: code for code, dtype in _DTYPES.items()}

_SCORE_FUNCTIONS = {
    pb.SCORE_FUNCTION_SOFTMAX: ScoreFunction.SOFTMAX,
    pb.SCORE_FUNCTION_SIGMOID: ScoreFunction.SIGMOID,
    pb.SCORE_FUNCTION_SOFTMAX_TOPK: ScoreFunction.SOFTMAX_TOPK,
}
_SCORE_FUNCTION_CODES = {function: code for code, function in _SCORE_FUNCTIONS.items()}

FINISH_REASONS = {
    pb.FINISH_REASON_UNSPECIFIED: None,
    pb.FINISH_REASON_STOP: FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    pb.FINISH_REASON_ABORTED: FinishReason.ABORTED,
}
ROUTER_EXPORT_CODES = {
    RouterExport.NONE: pb.ROUTER_EXPORT_NONE,
    RouterExport.IDS: pb.ROUTER_EXPORT_IDS,
    RouterExport.TOPK: pb.ROUTER_EXPORT_TOPK,
    RouterExport.FULL: pb.ROUTER_EXPORT_FULL,
}

_MAX_WHOLE = 1 << 53  # beyond, a double does not tell neighbouring integers apart

_FINISH_REASON_CODES = {reason: code for code, reason in FINISH_REASONS.items()}


def encode_tensor(array: NDArray[Any]) -> pb.Tensor:
    """Packs an array, row-major and little-endian.

    Raises:
        CorruptDataError: the dtype has no code on the wire.
    """
    dtype = array.dtype.newbyteorder("<")
    if dtype not in _DTYPE_CODES:
        raise CorruptDataError(
            f"tensor dtype {array.dtype} has no wire code; use one of {sorted(map(str, _DTYPE_CODES))}"
        )
    return pb.Tensor(dtype=_DTYPE_CODES[dtype], shape=array.shape, data=array.astype(dtype, copy=False).tobytes())


def decode_tensor(tensor: pb.Tensor, field: str, dtype: str | tuple[str, ...], ndim: int) -> NDArray[Any]:
    """A read-only view of the message's bytes as an array of `ndim` axes whose dtype is one of `dtype`.

    Raises:
        CorruptDataError: another dtype or rank than expected, or a byte count that contradicts the shape.
    """
    expected = (dtype,) if isinstance(dtype, str) else dtype
    found = _DTYPES.get(tensor.dtype)
    if found is None or found.name not in expected:
        raise CorruptDataError(f"{field}.dtype is {found or tensor.dtype}; expected {' or '.join(expected)}")
    shape = tuple(tensor.shape)
    if len(shape) != ndim:
        raise CorruptDataError(f"{field}.shape is {shape}; expected {ndim} axes")
    if len(tensor.data) != prod(shape) * found.itemsize:
        raise CorruptDataError(
            f"{field}.data has {len(tensor.data)} bytes; shape {shape} of {found} needs {prod(shape) * found.itemsize}"
        )
    try:
        return np.frombuffer(tensor.data, dtype=found).reshape(shape)
    except ValueError as error:  # an axis of 0 beside others too long to count
        raise CorruptDataError(f"{field}.shape is {shape}: {error}") from None


def encode_layout(layout: RouterLayout) -> pb.RouterLayout:
    return pb.RouterLayout(
        layer_ids=layout.layer_ids,
        num_experts=layout.num_experts,
        top_k=layout.top_k,
        score_function=_SCORE_FUNCTION_CODES[layout.score_function],
    )


def decode_layout(message: pb.RouterLayout) -> RouterLayout:
    """Raises CorruptDataError for an unknown score function or for sizes that no router can have."""
    function = _SCORE_FUNCTIONS.get(message.score_function)
    if function is None:
        raise CorruptDataError(
            f"layout.score_function is {message.score_function}; expected one of {list(ScoreFunction)}"
        )
    if not 1 <= message.top_k <= message.num_experts <= 65536:
        raise CorruptDataError(
            f"layout.top_k is {message.top_k} of {message.num_experts} experts; "
            "expected 1 <= top_k <= num_experts <= 65536"
        )
    return RouterLayout(tuple(message.layer_ids), message.num_experts, message.top_k, function)


def encode_trace(trace: RouterTrace, scores: ScoreDtype = ScoreDtype.FLOAT16) -> pb.RouterTrace:
    message = pb.RouterTrace(layout=encode_layout(trace.layout), expert_ids=encode_tensor(trace.expert_ids))
    if trace.log_scores is not None:
        coded = score_code.encode(trace.log_scores) if scores is ScoreDtype.UINT8 else trace.log_scores
        message.log_scores.CopyFrom(encode_tensor(coded))
    if trace.logits is not None:
        message.logits.CopyFrom(encode_tensor(trace.logits))
    message.crc32 = _trace_checksum(message)
    return message


def decode_trace(message: pb.RouterTrace, tokens: int) -> RouterTrace:
    """The trace of a response of `tokens` tokens, checked.

    Raises:
        CorruptDataError: wrong checksum, dtype or shape; or routes that no router can have made, see `check_trace`.
    """
    layout = decode_layout(message.layout)
    if (found := _trace_checksum(message)) != message.crc32:
        raise CorruptDataError(f"router_trace.crc32 is {message.crc32:#010x}; its data has {found:#010x}")
    layers = (tokens, len(layout.layer_ids))
    ids = _routes(message.expert_ids, "expert_ids", layout.id_dtype.name, (*layers, layout.top_k))
    scores = logits = None
    if message.HasField("log_scores"):
        scores = _routes(message.log_scores, "log_scores", ("float16", "uint8"), (*layers, layout.top_k))
        if scores.dtype == np.uint8:
            scores = score_code.decode(scores)
    if message.HasField("logits"):
        logits = _routes(message.logits, "logits", "float16", (*layers, layout.num_experts))
    trace = RouterTrace(layout, ids, scores, logits)
    check_trace(trace)
    return trace


def _routes(tensor: pb.Tensor, field: str, dtype: str | tuple[str, ...], shape: tuple[int, ...]) -> NDArray[Any]:
    array = decode_tensor(tensor, f"router_trace.{field}", dtype, 3)
    if array.shape != shape:
        last = "num_experts" if field == "logits" else "top_k"
        raise CorruptDataError(
            f"router_trace.{field} has shape {array.shape}; expected [tokens, moe_layers, {last}] = {shape}"
        )
    return array


def encode_completion(completion: Completion, scores: ScoreDtype = ScoreDtype.FLOAT16) -> pb.Completion:
    top = completion.top_logprobs
    return pb.Completion(
        index=completion.index,
        text=completion.text,
        token_ids=encode_tensor(completion.token_ids),
        logprobs=encode_tensor(completion.logprobs),
        versions=[pb.VersionSpan(version=s.version, tokens=s.tokens) for s in completion.versions],
        finish_reason=_FINISH_REASON_CODES[completion.finish_reason],
        router_trace=encode_trace(completion.router_trace, scores) if completion.router_trace else None,
        top_logprobs=pb.TopLogprobs(token_ids=encode_tensor(top.token_ids), logprobs=encode_tensor(top.logprobs))
        if top
        else None,
        special_tokens=encode_special_tokens(completion.special_tokens),
    )


def decode_completion(message: pb.Completion, earlier_tokens: int = 0) -> Completion:
    """A completion, or the piece of one that follows `earlier_tokens` tokens: a trace covers them too.

    Raises:
        CorruptDataError: lengths disagree or a value is out of its range; see `decode_trace`.
    """
    token_ids = decode_tensor(message.token_ids, "completion.token_ids", "int32", 1)
    logprobs = decode_tensor(message.logprobs, "completion.logprobs", "float32", 1)
    tokens = token_ids.size
    if logprobs.size != tokens:
        raise CorruptDataError(f"completion.logprobs has {logprobs.size} entries; token_ids has {tokens}")
    if not np.isfinite(logprobs).all() or (logprobs > 1e-3).any():
        raise CorruptDataError("completion.logprobs holds a value that is no log-probability; expected finite and <= 0")
    if (covered := sum(s.tokens for s in message.versions)) != tokens:
        raise CorruptDataError(f"completion.versions covers {covered} tokens; token_ids has {tokens}")
    if message.finish_reason not in FINISH_REASONS:
        raise CorruptDataError(
            f"completion.finish_reason is {message.finish_reason}; expected one of {list(FinishReason)}"
        )
    has_trace = message.HasField("router_trace")
    return Completion(
        index=message.index,
        token_ids=token_ids,
        logprobs=logprobs,
        versions=tuple(VersionSpan(s.version, s.tokens) for s in message.versions),
        finish_reason=FINISH_REASONS[message.finish_reason],
        router_trace=decode_trace(message.router_trace, earlier_tokens + tokens) if has_trace else None,
        text=message.text,
        top_logprobs=_decode_top_logprobs(message.top_logprobs, tokens) if message.HasField("top_logprobs") else None,
        special_tokens=decode_special_tokens(message.special_tokens),
    )


def encode_special_tokens(tokens: Iterable[SpecialToken]) -> list[pb.SpecialToken]:
    return [pb.SpecialToken(position=token.position, text=token.text) for token in tokens]


def decode_special_tokens(messages: Iterable[pb.SpecialToken]) -> tuple[SpecialToken, ...]:
    """The special tokens of a response, as they came."""
    return tuple(SpecialToken(message.position, message.text) for message in messages)


def _decode_top_logprobs(message: pb.TopLogprobs, tokens: int) -> TopLogprobs:
    token_ids = decode_tensor(message.token_ids, "top_logprobs.token_ids", "int32", 2)
    logprobs = decode_tensor(message.logprobs, "top_logprobs.logprobs", "float32", 2)
    if token_ids.shape != logprobs.shape or len(token_ids) != tokens:
        raise CorruptDataError(
            f"top_logprobs has shapes {token_ids.shape} and {logprobs.shape}; expected [tokens, N] with {tokens} tokens"
        )
    return TopLogprobs(token_ids, logprobs)


def encode_struct(values: Mapping[str, Any]) -> struct_pb2.Struct:
    """JSON values as a protobuf message. Raises ValueError for what JSON does not have."""
    message = struct_pb2.Struct()
    message.update(dict(values))
    return message


def decode_struct(message: struct_pb2.Struct) -> dict[str, Any]:
    """JSON values of a protobuf message. It knows only doubles: those that are whole are integers again.

    Raises:
        InvalidInputError: a number is not finite, which JSON does not have.
    """
    return {key: _decode_value(value, key) for key, value in message.fields.items()}


def _decode_value(value: struct_pb2.Value, where: str) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            number = value.number_value
            if not math.isfinite(number):
                raise InvalidInputError(f"{where} is {number}; expected a finite number")
            return int(number) if number.is_integer() and abs(number) <= _MAX_WHOLE else number
        case "struct_value":
            return {key: _decode_value(inner, f"{where}.{key}") for key, inner in value.struct_value.fields.items()}
        case "list_value":
            return [_decode_value(inner, f"{where}[{i}]") for i, inner in enumerate(value.list_value.values)]
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
    return None


def oldest_version(trajectories: Iterable[pb.Trajectory]) -> int | None:
    """The oldest policy version that sampled any token of these trajectories; None where there is no token."""
    return min((s.version for t in trajectories for s in t.completion.versions), default=None)


def newest_version(trajectories: Iterable[pb.Trajectory]) -> int | None:
    """The newest of them; None where there is no token."""
    return max((s.version for t in trajectories for s in t.completion.versions), default=None)


def _trace_checksum(message: pb.RouterTrace) -> int:
    checksum = zlib.crc32(message.log_scores.data, zlib.crc32(message.expert_ids.data))
    return zlib.crc32(message.logits.data, checksum)
