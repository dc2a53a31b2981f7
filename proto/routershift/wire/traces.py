"""Router traces on the wire, with the layout of their routers and a checksum."""

import zlib
from typing import Any

from numpy.typing import NDArray

from routershift.errors import CorruptDataError
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.routing.trace_check import check_trace
from routershift.trajectory import RouterExport, RouterTrace
from routershift.v1 import trajectory_pb2 as pb
from routershift.wire.tensors import decode_tensor, encode_tensor

ROUTER_EXPORT_CODES = {
    RouterExport.NONE: pb.ROUTER_EXPORT_NONE,
    RouterExport.IDS: pb.ROUTER_EXPORT_IDS,
    RouterExport.TOPK: pb.ROUTER_EXPORT_TOPK,
    RouterExport.FULL: pb.ROUTER_EXPORT_FULL,
}

_SCORE_FUNCTIONS = {
    pb.SCORE_FUNCTION_SOFTMAX: ScoreFunction.SOFTMAX,
    pb.SCORE_FUNCTION_SIGMOID: ScoreFunction.SIGMOID,
    pb.SCORE_FUNCTION_SOFTMAX_TOPK: ScoreFunction.SOFTMAX_TOPK,
}

_SCORE_FUNCTION_CODES = {function: code for code, function in _SCORE_FUNCTIONS.items()}


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


def encode_trace(trace: RouterTrace) -> pb.RouterTrace:
    message = pb.RouterTrace(layout=encode_layout(trace.layout), expert_ids=encode_tensor(trace.expert_ids))
    if trace.log_scores is not None:
        message.log_scores.CopyFrom(encode_tensor(trace.log_scores))
    if trace.logits is not None:
        message.logits.CopyFrom(encode_tensor(trace.logits))
    if trace.layers is not None:
        message.layers.CopyFrom(encode_tensor(trace.layers))
    message.crc32 = trace_checksum(message)
    return message


def decode_trace(message: pb.RouterTrace, tokens: int) -> RouterTrace:
    """The trace of a response of `tokens` tokens, checked.

    Raises:
        CorruptDataError: wrong checksum, dtype or shape; or routes that no router can have made, see `check_trace`.
    """
    layout = decode_layout(message.layout)
    if (found := trace_checksum(message)) != message.crc32:
        raise CorruptDataError(f"router_trace.crc32 is {message.crc32:#010x}; its data has {found:#010x}")
    width, places = len(layout.layer_ids), None
    if message.HasField("layers"):
        places = decode_tensor(message.layers, "router_trace.layers", "uint8", 2)
        if not 1 <= places.shape[1] < width or places.shape[0] != tokens:
            raise CorruptDataError(
                f"router_trace.layers has shape {places.shape}; expected [tokens, fewer than all moe_layers], of "
                f"{tokens} tokens and {width} layers"
            )
        width = places.shape[1]
    layers = (tokens, width)
    ids = _routes(message.expert_ids, "expert_ids", layout.id_dtype.name, (*layers, layout.top_k))
    scores = logits = None
    if message.HasField("log_scores"):
        scores = _routes(message.log_scores, "log_scores", ("float16", "uint8"), (*layers, layout.top_k))
    if message.HasField("logits"):
        logits = _routes(message.logits, "logits", "float16", (*layers, layout.num_experts))
    trace = RouterTrace(layout, ids, scores, logits, places)
    check_trace(trace)
    return trace


def trace_checksum(message: pb.RouterTrace) -> int:
    """CRC-32 of its arrays, as `RouterTrace.crc32` says."""
    checksum = zlib.crc32(message.log_scores.data, zlib.crc32(message.expert_ids.data))
    return zlib.crc32(message.layers.data, zlib.crc32(message.logits.data, checksum))


def _routes(tensor: pb.Tensor, field: str, dtype: str | tuple[str, ...], shape: tuple[int, ...]) -> NDArray[Any]:
    array = decode_tensor(tensor, f"router_trace.{field}", dtype, 3)
    if array.shape != shape:
        last = "num_experts" if field == "logits" else "top_k"
        raise CorruptDataError(
            f"router_trace.{field} has shape {array.shape}; expected [tokens, moe_layers, {last}] = {shape}"
        )
    return array
