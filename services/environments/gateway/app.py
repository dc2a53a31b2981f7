"""The paths of the gateway."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from services.environments.gateway.errors import ApiError, of_error
from services.environments.gateway.inference import Inference
from services.environments.gateway.schema import read_chat, read_completion
from services.environments.gateway.session import Session
from shared.errors import RouterShiftError

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")


class Completions:
    """The two methods that sample, and the list of models, for requests of one session each."""

    def __init__(self, inference: Inference, model: str) -> None:
        self._inference, self._model = inference, model

    def models(self) -> dict[str, Any]:
        card = {"id": self._model, "object": "model", "created": 0, "owned_by": "routershift"}
        return {"object": "list", "data": [card]}

    async def chat(self, http: Request, session: Session) -> Response:
        request = read_chat(await http.body())
        self._inference.require_model(request.model)
        self._inference.require_tools(request)
        try:
            if not request.stream:
                work = self._inference.chat(request, session)
                return JSONResponse(await unless_gone(http, session.during(work)))
            turn = await session.during(session.chat(request))
            return await _streamed(http, session, self._inference.chat_stream(request, turn), "messages")
        except RouterShiftError as error:
            raise of_error(error, "messages") from error

    async def text(self, http: Request, session: Session) -> Response:
        request = read_completion(await http.body())
        self._inference.require_model(request.model)
        try:
            if not request.stream:
                work = self._inference.text(request, session)
                return JSONResponse(await unless_gone(http, session.during(work)))
            turn = await session.during(session.text(request, request.prompts[0]))
            return await _streamed(http, session, self._inference.text_stream(request, turn), "prompt")
        except RouterShiftError as error:
            raise of_error(error, "prompt") from error


async def unless_gone(http: Request, work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """What the work gives; cancels it where the client goes away.

    Raises:
        ApiError: it has gone; nobody reads this.
    """
    working = asyncio.create_task(work)
    gone = asyncio.create_task(_gone(http))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError("the client went away", status=499, code="client_closed_request")
        return working.result()
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(http: Request) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _streamed(http: Request, session: Session, chunks: AsyncIterator[dict[str, Any]], field: str) -> Response:
    """Server-sent events. What fails before the first chunk has its status; later it is an event, and the last one."""
    first = await unless_gone(http, session.during(_next(chunks)))
    if first is None:
        raise ApiError("generation ended without a response", status=500, kind="api_error", code="internal_error")

    async def events() -> AsyncIterator[str]:
        async with aclosing(chunks):  # type: ignore[type-var]  # all are generators
            yield _event(first)
            try:
                while (chunk := await session.during(_next(chunks))) is not None:
                    yield _event(chunk)
            except Exception as error:
                if not isinstance(error, RouterShiftError):
                    log.exception("a stream failed")
                yield _event(of_error(error, field).body)
                return
            yield "data: [DONE]\n\n"

    return StreamingResponse(events(), media_type="text/event-stream", headers={"cache-control": "no-store"})


async def _next(chunks: AsyncIterator[dict[str, Any]]) -> dict[str, Any] | None:
    """The next one; None, where there is none: StopAsyncIteration does not leave a task."""
    return await anext(chunks, None)


def _event(body: Any) -> str:
    return f"data: {json.dumps(body, ensure_ascii=False, allow_nan=False)}\n\n"


async def _refused(http: Request, error: Exception) -> Response:
    """An error of our own, and one of the router: no such path, or no such method."""
    if isinstance(error, HTTPException):
        made = ApiError(
            f"{http.method} {http.url.path[:200]} is not served here; see docs/reference/gateway.md",
            status=error.status_code,
            kind="not_found_error" if error.status_code == 404 else "invalid_request_error",
            code="unknown_url" if error.status_code == 404 else "method_not_allowed",
        )
        return JSONResponse(made.body, made.status, dict(error.headers or {}))
    made = of_error(error)
    return JSONResponse(made.body, made.status, made.headers)


def make_app(routes: Sequence[BaseRoute]) -> Starlette:
    handlers: Any = {ApiError: _refused, HTTPException: _refused, RouterShiftError: _refused, Exception: _refused}
    return Starlette(routes=routes, exception_handlers=handlers)


def plain_routes(completions: Completions, session: Session) -> list[Route]:
    """Inference for anybody."""

    async def models(http: Request) -> Response:
        return JSONResponse(completions.models())

    async def model(http: Request) -> Response:
        name = http.path_params["name"]
        found = [card for card in completions.models()["data"] if card["id"] == name]
        if not found:
            raise ApiError(
                f"model {name[:80]!r} is not served here",
                status=404,
                kind="not_found_error",
                code="model_not_found",
                param="model",
            )
        return JSONResponse(found[0])

    async def chat(http: Request) -> Response:
        return await completions.chat(http, session)

    async def text(http: Request) -> Response:
        return await completions.text(http, session)

    return [
        Route("/v1/models", models, methods=["GET"]),
        Route("/v1/models/{name:path}", model, methods=["GET"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", text, methods=["POST"]),
    ]
