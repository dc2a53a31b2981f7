"""What clients may ask for: the bodies of requests, in the terms of the OpenAI API.

A field that is not known, or would change the result and is not supported, is refused. One that says what is so anyway
(`response_format: {"type": "text"}`), or is for the accounts of OpenAI alone (`user`, `metadata`), is taken.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from routershift.client.requests import Sampling
from services.environments.gateway.body import Body, read_body
from services.environments.gateway.conversation import Message, Tool
from services.environments.gateway.errors import ApiError, unsupported
from shared.sampling import MAX_LOGPROBS, MAX_SAMPLES, MAX_STOP_CHARACTERS, MAX_STOPS, MAX_TEMPERATURE

_MOST_TOOLS = 128  # as OpenAI has it
_MOST_TOKEN = 2**31 - 1
_SEED = 2**63  # OpenAI's seeds are int64; what is below 0 stands for itself plus 2^64


class StreamOptions(Body):
    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


_StopText = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
_Token = Annotated[int, Field(ge=0, le=_MOST_TOKEN)]


class _Request(Body):
    """What both kinds of request have."""

    model: str
    n: int | None = Field(None, ge=1, le=MAX_SAMPLES)
    temperature: float | None = Field(None, ge=0, le=MAX_TEMPERATURE)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=_MOST_TOKEN)
    stop: _StopText | Annotated[tuple[_StopText, ...], Field(max_length=MAX_STOPS)] | None = None
    seed: int | None = Field(None, ge=-_SEED, lt=2 * _SEED)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Fields of vLLM's.
    top_k: int | None = Field(None, ge=-1, le=_MOST_TOKEN)
    min_p: float | None = Field(None, ge=0, le=1)
    stop_token_ids: Annotated[tuple[_Token, ...], Field(max_length=MAX_STOPS)] | None = None
    return_token_ids: bool | None = None
    # Taken where they change nothing.
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else self.stop or ()

    @property
    def limit(self) -> int | None:
        """Tokens of a response."""
        return self.max_tokens

    @property
    def top(self) -> int | None:
        """Alternatives told of each token; None: no log-probs are asked for."""
        raise NotImplementedError

    def sampling(self) -> Sampling:
        """What was asked for; the rest is left to generation."""
        asked: Sampling = {}
        if self.n is not None:
            asked["n"] = self.n
        if self.temperature is not None:
            asked["temperature"] = self.temperature
        if self.top_p is not None:
            asked["top_p"] = self.top_p
        if self.top_k is not None:
            asked["top_k"] = max(0, self.top_k)  # -1 is vLLM's word for all
        if self.min_p is not None:
            asked["min_p"] = self.min_p
        if self.limit is not None:
            asked["max_tokens"] = self.limit
        if self.stops:
            asked["stop"] = self.stops
        if self.stop_token_ids:
            asked["stop_token_ids"] = self.stop_token_ids
        if self.seed is not None:
            asked["seed"] = self.seed % (2 * _SEED)
        if self.top:
            asked["logprobs"] = self.top
        return asked

    def check(self) -> None:
        """Raises ApiError for what would change the result and is not supported."""
        for field in ("frequency_penalty", "presence_penalty", "logit_bias"):
            if value := getattr(self, field):
                raise unsupported(field, value, "it is not supported: leave it out")
        if self.store:
            raise unsupported("store", True, "nothing is stored here: leave it out")
        if self.stream_options and not self.stream:
            raise ApiError(
                "stream_options is set, and stream is false; set stream or leave it out", param="stream_options"
            )


RequestT = TypeVar("RequestT", bound=_Request)


class ChatRequest(_Request):
    """The body of POST /v1/chat/completions."""

    messages: tuple[Message, ...] = Field(min_length=1)
    tools: Annotated[tuple[Tool, ...], Field(max_length=_MOST_TOOLS)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_completion_tokens: int | None = Field(None, ge=1, le=_MOST_TOKEN)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    chat_template_kwargs: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    modalities: tuple[str, ...] | None = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None

    @property
    def limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    @property
    def top(self) -> int | None:
        return (self.top_logprobs or 0) if self.logprobs else None

    @property
    def calls_tools(self) -> bool:
        """Whether calls are read out of what the model says."""
        return bool(self.tools) and self.tool_choice != "none"

    def check(self) -> None:
        super().check()
        if self.tool_choice not in (None, "auto", "none"):
            raise unsupported("tool_choice", self.tool_choice, 'a call cannot be forced: use "auto" or "none"')
        if self.tool_choice == "auto" and not self.tools:
            raise ApiError(
                "tool_choice is 'auto', and there are no tools; set tools or leave it out", param="tool_choice"
            )
        if self.tools and self.parallel_tool_calls is False:
            raise unsupported("parallel_tool_calls", False, "the model may call several tools: leave it out")
        if self.response_format not in (None, {"type": "text"}):
            raise unsupported("response_format", self.response_format, 'only {"type": "text"} is supported')
        if self.reasoning_effort is not None:
            raise unsupported(
                "reasoning_effort", self.reasoning_effort, "say it to the template, in chat_template_kwargs"
            )
        if self.modalities not in (None, ("text",)):
            raise unsupported("modalities", self.modalities, 'only ["text"] is supported')
        for field in ("functions", "function_call"):
            if getattr(self, field):
                raise unsupported(field, getattr(self, field), "it is an old form: use tools and tool_choice")
        for field in ("audio", "prediction", "web_search_options", "verbosity"):
            if getattr(self, field):
                raise unsupported(field, getattr(self, field), "it is not supported: leave it out")
        if self.top_logprobs and not self.logprobs:
            raise ApiError(
                f"top_logprobs is {self.top_logprobs}, and logprobs is not true; set both", param="top_logprobs"
            )
        if self.max_tokens and self.max_completion_tokens and self.max_tokens != self.max_completion_tokens:
            raise ApiError(
                f"max_tokens is {self.max_tokens}, and max_completion_tokens is {self.max_completion_tokens}; set one",
                param="max_tokens",
            )


_Ids = Annotated[tuple[_Token, ...], Field(min_length=1)]


class CompletionRequest(_Request):
    """The body of POST /v1/completions."""

    prompt: (
        str | _Ids | Annotated[tuple[str, ...], Field(min_length=1)] | Annotated[tuple[_Ids, ...], Field(min_length=1)]
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    @property
    def top(self) -> int | None:
        return self.logprobs

    @property
    def prompts(self) -> Sequence[str | Sequence[int]]:
        """One or more."""
        prompt = self.prompt
        if isinstance(prompt, str) or isinstance(prompt[0], int):
            return [prompt]
        return prompt

    def check(self) -> None:
        super().check()
        if self.echo:
            raise unsupported("echo", True, "log-probs of a prompt are not computed here: leave it out")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise unsupported("best_of", self.best_of, "responses are not ranked: leave it out, and ask for n")
        if self.suffix:
            raise unsupported("suffix", self.suffix, "nothing is sampled before a given text: leave it out")
        count = len(self.prompts)
        if count > 1 and self.stream:
            raise unsupported("prompt", f"{count} prompts", "a stream is of one prompt: send a request for each")
        if count * (self.n or 1) > MAX_SAMPLES:
            raise ApiError(
                f"prompt holds {count} prompts, with n = {self.n or 1} responses each; allowed: {MAX_SAMPLES} in all",
                param="prompt",
            )


def read_chat(body: bytes) -> ChatRequest:
    """Raises ApiError."""
    return _read(ChatRequest, body)


def read_completion(body: bytes) -> CompletionRequest:
    """Raises ApiError."""
    return _read(CompletionRequest, body)


def _read(kind: type[RequestT], body: bytes) -> RequestT:
    request = read_body(kind, body)
    request.check()
    return request
