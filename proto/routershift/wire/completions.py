"""Sampled responses on the wire."""

from collections.abc import Iterable

import numpy as np

from routershift.errors import CorruptDataError
from routershift.trajectory import Completion, FinishReason, SpecialToken, TopLogprobs, VersionSpan
from routershift.v1 import trajectory_pb2 as pb
from routershift.wire.tensors import decode_tensor, encode_tensor
from routershift.wire.traces import decode_trace, encode_trace

FINISH_REASONS = {
    pb.FINISH_REASON_UNSPECIFIED: None,
    pb.FINISH_REASON_STOP: FinishReason.STOP,
    pb.FINISH_REASON_LENGTH: FinishReason.LENGTH,
    pb.FINISH_REASON_ABORTED: FinishReason.ABORTED,
}

_FINISH_REASON_CODES = {reason: code for code, reason in FINISH_REASONS.items()}


def encode_completion(completion: Completion) -> pb.Completion:
    top = completion.top_logprobs
    return pb.Completion(
        index=completion.index,
        text=completion.text,
        token_ids=encode_tensor(completion.token_ids),
        logprobs=encode_tensor(completion.logprobs),
        versions=[pb.VersionSpan(version=s.version, tokens=s.tokens) for s in completion.versions],
        finish_reason=_FINISH_REASON_CODES[completion.finish_reason],
        router_trace=encode_trace(completion.router_trace) if completion.router_trace else None,
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
