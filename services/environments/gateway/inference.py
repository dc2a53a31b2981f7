"""Requests of the OpenAI API, answered by a policy that samples token ids."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from routershift.trajectory import Completion
from services.environments.gateway import answers
from services.environments.gateway.errors import ApiError, unsupported
from services.environments.gateway.model import Policy, Texts
from services.environments.gateway.reply import Delta, Reply
from services.environments.gateway.schema import ChatRequest, CompletionRequest
from services.environments.gateway.session import Session, Turn, tools_of
from services.environments.tool_calls.base import Parser
from shared.models.detokenizer import TextStream

CHAT, CHAT_CHUNK, TEXT = "chat.completion", "chat.completion.chunk", "text_completion"


class Inference:
    """Answers whole and in pieces."""

    def __init__(self, policy: Policy, waiting: Policy, texts: Texts, model: str, parser: Parser | None) -> None:
        """
        Args:
            waiting: the policy for turns that wait.
            model: the name that requests have to have.
            parser: of calls of tools; None where the model has no form of them.
        """
        self._policy, self._waiting = policy, waiting
        self._texts, self._model, self._parser = texts, model, parser

    def require_model(self, name: str) -> None:
        if name != self._model:
            raise ApiError(
                f"model is {name[:80]!r}; served here: {self._model!r}",
                status=404,
                kind="not_found_error",
                code="model_not_found",
                param="model",
            )

    def require_tools(self, request: ChatRequest) -> None:
        """Raises ApiError where calls of tools would not be found."""
        if request.calls_tools and self._parser is None:
            raise unsupported(
                "tools",
                f"{len(request.tools or ())} functions",
                "the chat template of the model writes calls in no known form: set environments.tool_calls",
            )

    async def chat(self, request: ChatRequest, session: Session) -> dict[str, Any]:
        turn = await session.chat(request)
        completions = await self._sample(turn)
        choices = []
        for completion in completions:
            reply, source = self._reply(request, turn)
            reply.add(source.piece(completion, True), last=True)
            message, reason = reply.message, _reason(reply, completion)
            turn.record(completion, message)
            choice = {"index": completion.index, "message": message, "finish_reason": reason}
            choice["logprobs"] = answers.chat_logprobs(self._texts, completion) if request.logprobs else None
            choices.append(choice | _ids(request.return_token_ids, completion))
        made = self._head(CHAT, "chatcmpl", completions) | {"choices": choices, "usage": _usage([turn], completions)}
        return made | ({"prompt_token_ids": list(turn.token_ids)} if request.return_token_ids else {})

    async def text(self, request: CompletionRequest, session: Session) -> dict[str, Any]:
        turns = [await session.text(request, prompt) for prompt in request.prompts]
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._sample(turn)) for turn in turns]
        except ExceptionGroup as failures:
            raise failures.exceptions[0] from None
        completions: list[Completion] = []
        choices: list[dict[str, Any]] = []
        for turn, task in zip(turns, tasks, strict=True):
            for completion in task.result():
                turn.record(completion, None)
                completions.append(completion)
                choice: dict[str, Any] = {
                    "index": len(choices),
                    "text": answers.Stops(turn.stop).add(completion.text, last=True),
                    "finish_reason": answers.finish(completion),
                    "logprobs": None,
                }
                if request.logprobs is not None:
                    choice["logprobs"] = answers.completion_logprobs(self._texts, completion, 0)
                if request.return_token_ids:
                    choice["prompt_token_ids"] = list(turn.token_ids)
                choices.append(choice | _ids(request.return_token_ids, completion))
        made = self._head(TEXT, "cmpl", completions)
        return made | {"choices": choices, "usage": _usage(turns, completions)}

    async def chat_stream(self, request: ChatRequest, turn: Turn) -> AsyncIterator[dict[str, Any]]:
        """Chunks of a turn, those of n responses interleaved: content as it comes, and each call when it is whole."""
        identity = answers.new_id("chatcmpl")
        whole: dict[int, Completion] = {}
        replies: dict[int, tuple[Reply, _Source]] = {}

        def chunk(index: int, delta: Mapping[str, Any], reason: str | None, version: int | None) -> dict[str, Any]:
            choice = {"index": index, "delta": delta, "finish_reason": reason, "logprobs": None}
            return answers.head(CHAT_CHUNK, identity, self._model, version) | {"choices": [choice]}

        async for piece in self._pieces(turn):
            index, version = piece.index, answers.version_of(piece)
            if index not in whole:
                replies[index] = self._reply(request, turn)
                first = chunk(index, {"role": "assistant", "content": ""}, None, version)
                if request.return_token_ids:
                    first["prompt_token_ids"] = list(turn.token_ids)
                yield first
            whole[index] = so_far = joined(whole.get(index), piece)
            reply, source = replies[index]
            is_last = piece.finish_reason is not None
            delta = _delta(reply, reply.add(source.piece(piece, is_last), last=is_last))
            reason = None
            if is_last:
                reason = _reason(reply, so_far)
                turn.record(so_far, reply.message)
            told = chunk(index, delta, None, version)
            if request.logprobs:
                told["choices"][0]["logprobs"] = answers.chat_logprobs(self._texts, piece)
            told["choices"][0] |= _ids(request.return_token_ids, piece)
            if delta or request.logprobs or request.return_token_ids:
                yield told
            if is_last:
                yield chunk(index, {}, reason, version)
        if request.stream_options and request.stream_options.include_usage:
            last = answers.head(CHAT_CHUNK, identity, self._model, None)
            yield last | {"choices": [], "usage": _usage([turn], list(whole.values()))}

    async def text_stream(self, request: CompletionRequest, turn: Turn) -> AsyncIterator[dict[str, Any]]:
        """Chunks of a turn, those of n responses interleaved."""
        identity = answers.new_id("cmpl")
        whole: dict[int, Completion] = {}
        stops: dict[int, answers.Stops] = {}
        offsets: dict[int, int] = {}
        async for piece in self._pieces(turn):
            index, is_last = piece.index, piece.finish_reason is not None
            whole[index] = joined(whole.get(index), piece)
            reason = answers.finish(piece) if is_last else None
            if is_last:
                turn.record(whole[index], None)
            text = stops.setdefault(index, answers.Stops(turn.stop)).add(piece.text, last=is_last)
            choice: dict[str, Any] = {"index": index, "text": text, "finish_reason": reason, "logprobs": None}
            if request.logprobs is not None:
                told = answers.completion_logprobs(self._texts, piece, offsets.get(index, 0))
                offsets[index] = offsets.get(index, 0) + sum(map(len, told["tokens"]))
                choice["logprobs"] = told
            if text or is_last or request.logprobs is not None or request.return_token_ids:
                head = answers.head(TEXT, identity, self._model, answers.version_of(piece))
                yield head | {"choices": [choice | _ids(request.return_token_ids, piece)]}
        if request.stream_options and request.stream_options.include_usage:
            head = answers.head(TEXT, identity, self._model, None)
            yield head | {"choices": [], "usage": _usage([turn], list(whole.values()))}

    def _policy_of(self, turn: Turn) -> Policy:
        return self._waiting if turn.waits else self._policy

    async def _sample(self, turn: Turn) -> list[Completion]:
        completions = await self._policy_of(turn).generate(
            turn.token_ids, return_router=turn.return_router, **turn.sampling
        )
        for completion in completions:
            answers.finish(completion)
        return completions

    def _pieces(self, turn: Turn) -> AsyncIterator[Completion]:
        return self._policy_of(turn).stream(turn.token_ids, return_router=turn.return_router, **turn.sampling)

    def _reply(self, request: ChatRequest, turn: Turn) -> tuple[Reply, "_Source"]:
        """An empty message, and what gives the text that it is made of."""
        parser = self._parser
        # A form of channels is read without tools too: its headers are no content.
        if parser is None or not (request.calls_tools or parser.needs_special_tokens):
            return Reply(None, False, turn.stop), _Source(None)
        reader = parser.reader(tools=tools_of(request) or ())
        stream = self._texts.stream() if parser.needs_special_tokens else None
        return Reply(reader, request.calls_tools, turn.stop), _Source(stream)

    def _head(self, kind: str, prefix: str, completions: Sequence[Completion]) -> dict[str, Any]:
        versions = [version for completion in completions if (version := answers.version_of(completion)) is not None]
        return answers.head(kind, answers.new_id(prefix), self._model, max(versions, default=None))


class _Source:
    """The text of a response: its own, or where the form of its calls is written in special tokens, that with them."""

    def __init__(self, stream: TextStream | None) -> None:
        self._stream = stream

    def piece(self, piece: Completion, is_last: bool) -> str:
        if self._stream is None:
            return piece.text
        return self._stream.add(piece.token_ids.tolist(), last=is_last)


def _reason(reply: Reply, completion: Completion) -> str:
    reason = answers.finish(completion)
    return "tool_calls" if reply.calls and reason == "stop" else reason


def _delta(reply: Reply, new: Delta) -> dict[str, Any]:
    made: dict[str, Any] = {"content": new.content} if new.content else {}
    if new.thoughts:
        made["reasoning_content"] = new.thoughts
    if new.calls:
        first = reply.calls - len(new.calls)
        made["tool_calls"] = [{"index": first + i, **call} for i, call in enumerate(new.calls)]
    return made


def joined(so_far: Completion | None, piece: Completion) -> Completion:
    """A response and the piece that follows; that has the finish reason and the routers of all."""
    if so_far is None:
        return piece
    return replace(
        piece,
        token_ids=np.concatenate([so_far.token_ids, piece.token_ids]),
        logprobs=np.concatenate([so_far.logprobs, piece.logprobs]),
        versions=(*so_far.versions, *piece.versions),
        text=so_far.text + piece.text,
        top_logprobs=None,
        special_tokens=(*so_far.special_tokens, *piece.special_tokens),
    )


def _ids(asked: bool | None, completion: Completion) -> dict[str, Any]:
    return {"token_ids": completion.token_ids.tolist()} if asked else {}


def _usage(turns: Sequence[Turn], completions: Sequence[Completion]) -> dict[str, int]:
    return answers.usage(
        sum(len(turn.token_ids) for turn in turns), sum(completion.token_ids.size for completion in completions)
    )
