"""What stands before every method of a gRPC server: access, the arrival of the request, and errors as status codes."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc
from google.protobuf.message import DecodeError

from routershift.client.status import MAX_MESSAGE_BYTES, PUSHBACK, status_of
from shared import errors
from shared.rpc.access import HEALTH, REFUSED, AccessControl
from shared.rpc.arrivals import Arrivals
from shared.settings import ServerSettings
from shared.tracing import spans
from shared.tracing.context import HEADER, sampled
from shared.tracing.kinds import CALL, Call

log = logging.getLogger(__name__)

# A question about health names a service.
_HEALTH_BYTES = 1 << 10

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class Guard(grpc.aio.ServerInterceptor):
    """Admits calls; answers errors of `shared.errors` as their status codes, all others as INTERNAL without their text.

    A call is admitted by its headers. Only then is its request read, among a bounded number and within a time: whoever
    shows no token takes no memory. gRPC itself reads the request of a method before anything is asked, but for methods
    that take a stream of them; so to gRPC all methods take a stream, of which the guard reads one.

    A request that is too large or no message of the method's type, and an answer that is too large, are an
    INVALID_ARGUMENT. An overload says when to come back. Health is for everybody.
    """

    def __init__(self, access: AccessControl, settings: ServerSettings) -> None:
        self._access = access
        self._max_request_bytes = settings.max_request_bytes
        self._arrivals = Arrivals(settings)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(handler_call_details)
        method = getattr(handler_call_details, "method", "")
        if handler is None:
            return handler
        # Messages are read and written within the guard: gRPC answers UNKNOWN or INTERNAL where a serializer raises.
        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(self._unary(handler, method))
        # Of streams of requests there is reflection alone, whose requests name a symbol.
        call: Any = handler.unary_stream or handler.stream_stream
        return grpc.stream_stream_rpc_method_handler(self._stream(call, handler, method))

    def _unary(self, handler: Any, method: str) -> Callable[..., Any]:
        async def guarded(requests: AsyncIterator[bytes], context: Any) -> Any:
            try:
                with self._admit(method, context):
                    request = await self._read(handler, method, requests, context)
                    return _write(handler, await handler.unary_unary(request, context))
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                return await _abort(context, error, method)

        return guarded

    def _stream(self, call: Callable[..., Any], handler: Any, method: str) -> Callable[..., Any]:
        async def guarded(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
            try:
                with self._admit(method, context):
                    if handler.request_streaming:
                        request: Any = self._each(handler, method, requests, context)
                    else:
                        request = await self._read(handler, method, requests, context)
                    async for piece in call(request, context):
                        yield _write(handler, piece)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await _abort(context, error, method)

        return guarded

    @contextmanager
    def _admit(self, method: str, context: Any) -> Iterator[None]:
        """For as long as the call lasts, and in its trace. Probes know no tokens and leave no traces."""
        if method.startswith(HEALTH):
            yield
            return
        metadata = context.invocation_metadata() or ()
        with self._access.admit(method, metadata, context.peer()), _span(method, metadata):
            yield

    async def _each(
        self, handler: Any, method: str, requests: AsyncIterator[bytes], context: Any
    ) -> AsyncIterator[Any]:
        """The messages of a stream."""
        answered = 0
        while True:
            try:
                request = await self._next(method, requests, context)
            except (errors.DeadlineError, errors.OverloadedError):
                if answered == 0:
                    raise
                return  # a caller that has its answers and says nothing more; it may call again
            if request is None:
                return
            answered += 1
            yield self._parse(handler, method, request)

    async def _read(self, handler: Any, method: str, requests: AsyncIterator[bytes], context: Any) -> Any:
        """The only request of a call.

        Raises:
            InvalidInputError: there is none, or it is too large, or no message of the method.
            DeadlineError, OverloadedError: see `Arrivals.receive`.
        """
        request = await self._next(method, requests, context)
        if request is None:
            raise errors.InvalidInputError(f"the call of {method} ended before its request was there")
        return self._parse(handler, method, request)

    async def _next(self, method: str, requests: AsyncIterator[bytes], context: Any) -> bytes | None:
        """The bytes of the next request; None where the caller sends no more."""
        try:
            return await self._arrivals.receive(context.peer(), lambda: anext(requests, None))
        except errors.RouterShiftError as error:
            REFUSED.labels("late" if isinstance(error, errors.DeadlineError) else "overloaded").inc()
            log.warning("%s of %s refused: %s", method, context.peer(), error)
            raise

    def _parse(self, handler: Any, method: str, request: bytes) -> Any:
        most = _HEALTH_BYTES if method.startswith(HEALTH) else self._max_request_bytes
        if len(request) > most:
            REFUSED.labels("too_large").inc()
            raise errors.InvalidInputError(f"request is {len(request)} bytes long; allowed: max_request_bytes = {most}")
        try:
            return handler.request_deserializer(request)
        except DecodeError as error:
            raise errors.InvalidInputError(
                f"request of {len(request)} bytes is no message of this method: {error}"
            ) from None


def _span(method: str, metadata: Iterable[tuple[str, str | bytes]]) -> spans.Span[Call]:
    """Goes on with the trace of a caller that sends one; of several, W3C Trace Context has none count."""
    sent = [value for name, value in metadata if name == HEADER]
    span = spans.span(CALL, sampled(sent[0]) if len(sent) == 1 else "")
    span.set({"method": method.removeprefix("/")})
    return span


def _write(handler: Any, response: Any) -> bytes:
    data = bytes(handler.response_serializer(response))
    if len(data) > MAX_MESSAGE_BYTES:
        raise errors.InvalidInputError(
            f"the answer is {len(data)} bytes long; allowed: {MAX_MESSAGE_BYTES} in one message; ask for less at once"
        )
    return data


async def _abort(context: Any, error: Exception, method: str) -> None:
    if isinstance(error, errors.OverloadedError):
        after = (PUSHBACK, str(round(1000 * error.retry_after)))
        await context.abort(status_of(error), str(error), (after,))
    if isinstance(error, errors.RouterShiftError):
        await context.abort(status_of(error), str(error))
    log.exception("%s failed", method)
    await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__} in {method}; see the service's log")
