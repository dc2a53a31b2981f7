"""Whose requests the gateway answers: turns are made of requests, of anybody's here, of an episode's in episode.py."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from routershift.client.requests import Sampling
from routershift.trajectory import Completion
from services.environments.gateway.model import Texts
from services.environments.gateway.schema import ChatRequest, CompletionRequest

ResultT = TypeVar("ResultT")


def _forget(completion: Completion, message: Mapping[str, Any] | None) -> None:
    """What nobody records."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One request, in the terms of the policy."""

    token_ids: Sequence[int]
    sampling: Sampling
    return_router: bool = False
    # Called with each whole response and the message that it was answered as, None where it was answered as text.
    record: Callable[[Completion, Mapping[str, Any] | None], None] = field(default=_forget)
    stop: Sequence[str] = ()  # texts that the answer leaves out
    waits: bool = False  # for a generation that has no room, or is started again


class Session(Protocol):
    """What makes turns of requests: those of anybody, or those of one episode."""

    async def chat(self, request: ChatRequest) -> Turn: ...

    async def text(self, request: CompletionRequest, prompt: str | Sequence[int]) -> Turn: ...

    async def during(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        """What a part of an answer's work gives. Raises ApiError where the session has ended first."""


class Plain:
    """Requests that nobody records."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts

    async def chat(self, request: ChatRequest) -> Turn:
        prompt = await render(self._texts, request)
        ids = await self._texts.encode(prompt, "messages", add_special_tokens=False)
        return Turn(ids, request.sampling(), stop=request.stops)

    async def text(self, request: CompletionRequest, prompt: str | Sequence[int]) -> Turn:
        ids = await self._texts.encode(prompt, "prompt") if isinstance(prompt, str) else prompt
        return Turn(ids, request.sampling(), stop=request.stops)

    async def during(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        return await work


async def render(texts: Texts, request: ChatRequest) -> str:
    """The text of the prompt. Raises InvalidInputError where the template refuses the messages."""
    return await asyncio.to_thread(
        texts.chat.render, for_template(request), tools_of(request), request.chat_template_kwargs
    )


def for_template(request: ChatRequest) -> list[dict[str, Any]]:
    """Raises ApiError, which names the message."""
    return [message.for_template(place) for place, message in enumerate(request.messages)]


def tools_of(request: ChatRequest) -> list[dict[str, Any]] | None:
    return [tool.model_dump(exclude_none=True) for tool in request.tools] if request.tools else None
