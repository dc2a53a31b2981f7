"""What the gateway answers, in the terms of the OpenAI API."""

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from routershift.trajectory import Completion, FinishReason
from services.environments.base import ToolCall
from services.environments.gateway.model import Texts
from services.environments.tool_calls.tagged import overlap
from shared.errors import UnavailableError

# What the alternatives of a token have where truncation left fewer: see `TopLogprobs`.
_NO_TOKEN = float(np.finfo(np.float32).min)


def new_id(prefix: str) -> str:
    return f"{prefix}-{secrets.token_hex(12)}"


class Stops:
    """The text of one response as it comes, up to the first stop text: generation keeps that, this API does not."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._waiting = ""
        self._is_over = False

    def add(self, text: str, *, last: bool = False) -> str:
        """What can be told: not what may be the beginning of a stop text."""
        if self._is_over:
            return ""
        whole = self._waiting + text
        ends = [place for stop in self._stops if (place := whole.find(stop)) >= 0]
        if ends:
            self._is_over, self._waiting = True, ""
            return whole[: min(ends)]
        held = 0 if last else max((overlap(whole, stop) for stop in self._stops), default=0)
        told, self._waiting = whole[: len(whole) - held], whole[len(whole) - held :]
        return told


def finish(completion: Completion) -> str:
    """Raises UnavailableError where the engine gave the response up: half of one is no response."""
    if completion.finish_reason is FinishReason.STOP:
        return "stop"
    if completion.finish_reason is FinishReason.LENGTH:
        return "length"
    raise UnavailableError("generation gave the response up before its end; send the request again")


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def head(kind: str, identity: str, model: str, version: int | None) -> dict[str, Any]:
    """What every answer begins with; the fingerprint is the version of the weights."""
    fingerprint = None if version is None else f"version-{version}"
    return {
        "id": identity,
        "object": kind,
        "created": int(time.time()),
        "model": model,
        "system_fingerprint": fingerprint,
    }


def version_of(completion: Completion) -> int | None:
    """The newest version that sampled of it."""
    return max((span.version for span in completion.versions), default=None)


def calls_of(calls: Sequence[ToolCall]) -> list[dict[str, Any]]:
    """With ids that no other call has."""
    return [
        {
            "id": f"call_{secrets.token_hex(12)}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(dict(call.arguments or {}), ensure_ascii=False)},
        }
        for call in calls
    ]


def chat_logprobs(texts: Texts, completion: Completion) -> dict[str, Any]:
    """Those of each token, under the distribution that it was sampled from."""
    return {
        "content": [
            {**_token(texts, int(token), float(logprob)), "top_logprobs": [_token(texts, *other) for other in others]}
            for token, logprob, others in zip(
                completion.token_ids, completion.logprobs, _alternatives(completion), strict=True
            )
        ],
        "refusal": None,
    }


def completion_logprobs(texts: Texts, completion: Completion, offset: int) -> dict[str, Any]:
    """Args: offset: characters of the response before these tokens."""
    tokens = [texts.piece(int(token)) for token in completion.token_ids]
    offsets = [offset]
    for token in tokens:
        offsets.append(offsets[-1] + len(token))
    tops: list[Mapping[str, float]] = [
        {texts.piece(token): logprob for token, logprob in others} for others in _alternatives(completion)
    ]
    return {
        "tokens": tokens,
        "token_logprobs": [float(logprob) for logprob in completion.logprobs],
        "top_logprobs": tops if completion.top_logprobs is not None else None,
        "text_offset": offsets[:-1],
    }


def _token(texts: Texts, token: int, logprob: float) -> dict[str, Any]:
    text = texts.piece(token)
    return {"token": text, "logprob": logprob, "bytes": None if "\ufffd" in text else list(text.encode())}


def _alternatives(completion: Completion) -> list[list[tuple[int, float]]]:
    top = completion.top_logprobs
    if top is None:
        return [[] for _ in range(completion.token_ids.size)]
    return [
        [(int(token), float(logprob)) for token, logprob in zip(ids, logprobs, strict=True) if logprob > _NO_TOKEN]
        for ids, logprobs in zip(top.token_ids, top.logprobs, strict=True)
    ]
