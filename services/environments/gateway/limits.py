"""What holds for every request before it is read: how many there are, who sends it, how long it is, and the stop."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from services.environments.gateway import metrics
from services.environments.gateway.errors import ApiError, of_error
from services.environments.gateway.settings import GatewaySettings
from shared.rpc.access import GATEWAY, AccessControl

log = logging.getLogger(__name__)


class Limits:
    """Admits requests to the application within: by number and length first, then by token and role."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings, access: AccessControl) -> None:
        self._app, self._settings, self._access = app, settings, access
        self._running: set[asyncio.Timeout] = set()
        self._is_stopping = False

    def stop(self, seconds: float) -> None:
        """Refuses requests from now on, and those that have not ended within so many seconds."""
        self._is_stopping = True
        deadline = asyncio.get_running_loop().time() + seconds
        for running in self._running:
            running.reschedule(deadline)

    @property
    def running(self) -> int:
        """Requests in progress."""
        return len(self._running)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began: Headers | None = None

        async def sending(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = Headers(raw=message["headers"])
                metrics.REQUESTS.labels(str(message["status"])).inc()
            await send(message)

        try:
            async with self._admitted():
                headers = Headers(scope=scope)
                limited = self._limited(headers, receive)
                # Not the caller's IP address: several agents may share one, and one may have many.
                with self._access.admit(GATEWAY, [("authorization", headers.get("authorization", ""))]):
                    await self._app(scope, limited, sending)
        except Exception as error:
            answer = of_error(error)
            if began is not None:
                if not self._is_stopping or "event-stream" not in began.get("content-type", ""):
                    raise  # the server logs it and cuts the connection: half an answer must not look like one
                event = f"data: {json.dumps(answer.body)}\n\n".encode()
                await send({"type": "http.response.body", "body": event, "more_body": False})
                return
            if answer.status >= 500 and not isinstance(error, ApiError):
                log.exception("%s %s failed", scope["method"], scope["path"])
            await JSONResponse(answer.body, answer.status, answer.headers)(scope, receive, sending)

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[None]:
        """While one request is answered.

        Raises:
            ApiError: there are too many, or the service stops.
        """
        most = self._settings.max_requests
        if self._is_stopping:
            raise _stopping()
        if self.running >= most:
            raise ApiError(
                f"{self.running} requests are in progress; gateway.max_requests = {most}",
                status=429,
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                retry_after=1.0,
            )
        ends = asyncio.timeout(None)
        try:
            async with ends:
                self._running.add(ends)
                yield
        except TimeoutError:
            if not ends.expired():
                raise
            raise _stopping() from None
        finally:
            self._running.discard(ends)

    def _limited(self, headers: Headers, receive: Receive) -> Callable[[], Awaitable[Message]]:
        """Receives a body up to its limits of bytes and of time."""
        most = self._settings.max_body_bytes
        told = headers.get("content-length", "0")
        if told.isdecimal() and int(told) > most:
            raise _too_long(told, most)
        read, whole = 0, False
        deadline = asyncio.get_running_loop().time() + self._settings.receive_seconds

        async def limited() -> Message:
            nonlocal read, whole
            if whole:
                return await receive()  # what follows is that the client goes away, whenever that is
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                raise ApiError(
                    f"the body has not come within gateway.receive_seconds = {self._settings.receive_seconds:g}",
                    status=408,
                    kind="timeout_error",
                    code="request_timeout",
                ) from None
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if read > most:
                    raise _too_long(f"more than {most}", most)
            return message

        return limited


def _stopping() -> ApiError:
    return ApiError(
        "the service stops; send the request again when it is back",
        status=503,
        kind="service_unavailable_error",
        code="service_unavailable",
    )


def _too_long(told: str, most: int) -> ApiError:
    return ApiError(
        f"the body is {told[:20]} bytes long; allowed: gateway.max_body_bytes = {most}",
        status=413,
        code="request_too_large",
    )
