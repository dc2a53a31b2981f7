"""gRPC servers: health, reflection, access, and errors as status codes."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from routershift.client import status
from routershift.client.status import MAX_MESSAGE_BYTES, PUSHBACK, status_of
from shared import errors
from shared.rpc import credentials
from shared.rpc.access import HEALTH, AccessControl
from shared.rpc.address import check_port, join
from shared.rpc.schema import CommentedPool
from shared.settings import AccessSettings, ServerSettings
from shared.tracing import spans
from shared.tracing.context import HEADER, sampled
from shared.tracing.kinds import CALL, Call

log = logging.getLogger(__name__)

_MAX_CONCURRENT_STREAMS = 1024
# A client sends a small message again where gRPC itself refuses it, and one above 256 KiB never: see `Guard`.
_SLACK_BYTES = 1 << 20


async def begin(context: Any) -> None:
    """Tells the client that work has begun, so that its channel does not send the call again if the connection is lost.

    A method calls it once it has admitted a request, and before what costs time: until then UNAVAILABLE and
    RESOURCE_EXHAUSTED are tried again. gRPC's word for it: response headers commit a call.
    """
    await context.send_initial_metadata(())


class Guard(grpc.aio.ServerInterceptor):
    """Admits calls; answers errors of `shared.errors` as their status codes, all others as INTERNAL without their text.

    A request that is too large or no message of the method's type, and an answer that is too large, are an
    INVALID_ARGUMENT. An overload says when to come back. Health is for everybody.
    """

    def __init__(self, access: AccessControl, max_request_bytes: int) -> None:
        self._access = access
        self._max_request_bytes = max_request_bytes

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = await continuation(handler_call_details)
        method = getattr(handler_call_details, "method", "")
        if handler is None or method.startswith(HEALTH):
            return handler
        # Messages are read and written within the guard: gRPC answers UNKNOWN or INTERNAL where a serializer raises.
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(self._unary(handler, method))
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(self._stream(handler.unary_stream, handler, method))
        stream: Any = handler.stream_stream  # reflection alone: no service of ours reads a stream
        return grpc.stream_stream_rpc_method_handler(
            self._stream(stream, handler, method), handler.request_deserializer
        )

    def _unary(self, handler: Any, method: str) -> Callable[..., Any]:
        async def guarded(request: bytes, context: Any) -> Any:
            try:
                metadata = context.invocation_metadata() or ()
                with self._access.admit(method, metadata, context.peer()), _span(method, metadata):
                    response = await handler.unary_unary(self._read(handler, request), context)
                    return _write(handler, response)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                return await _abort(context, error, method)

        return guarded

    def _stream(self, call: Callable[..., Any], handler: Any, method: str) -> Callable[..., Any]:
        async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                metadata = context.invocation_metadata() or ()
                with self._access.admit(method, metadata, context.peer()), _span(method, metadata):
                    async for piece in call(self._read(handler, request), context):
                        yield _write(handler, piece)
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                await _abort(context, error, method)

        return guarded

    def _read(self, handler: Any, request: Any) -> Any:
        """The message of one request; a stream of requests, which gRPC has parsed, as it is."""
        if not isinstance(request, bytes):
            return request
        if len(request) > self._max_request_bytes:
            raise errors.InvalidInputError(
                f"request is {len(request)} bytes long; allowed: max_request_bytes = {self._max_request_bytes}"
            )
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


class Server:
    """A gRPC server with health on it, and reflection."""

    def __init__(self, access: AccessSettings | None = None, settings: ServerSettings | None = None) -> None:
        """Args: access: who may come in; default: everybody. settings: its limits.

        Raises:
            NotFoundError, InvalidInputError: a file of tokens that is missing or wrong.
        """
        self._access, self._settings = access or AccessSettings(), settings or ServerSettings()
        self._server = grpc.aio.server(
            interceptors=[Guard(AccessControl(self._access, self._settings), self._settings.max_request_bytes)],
            options=[
                # Beyond its own limit gRPC refuses a message unread, but as RESOURCE_EXHAUSTED, which is tried again.
                (
                    "grpc.max_receive_message_length",
                    min(2 * self._settings.max_request_bytes + _SLACK_BYTES, 2**31 - 1),
                ),
                ("grpc.max_send_message_length", -1),  # the guard refuses what clients do not take
                ("grpc.keepalive_time_ms", round(1000 * status.KEEPALIVE_SECONDS)),
                ("grpc.http2.min_ping_interval_without_data_ms", round(500 * status.KEEPALIVE_SECONDS)),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.max_concurrent_streams", _MAX_CONCURRENT_STREAMS),
                ("grpc.so_reuseport", 0),  # else a second server on the same port would go unnoticed
            ],
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._probes: grpc.aio.Server | None = None
        self._services: list[str] = []

    @property
    def grpc(self) -> grpc.aio.Server:
        """For the generated add_..._to_server functions."""
        return self._server

    async def listen(self, host: str, port: int, services: list[str]) -> int:
        """Starts to answer, as NOT_SERVING; gives the port.

        Raises:
            PortTakenError: a port is taken.
            PreconditionError: the host is no address of this machine.
            NotFoundError: a file of certificates is missing.
            InvalidInputError: certificates that are none, or tokens without TLS beyond this machine.
        """
        self._services = services
        check_port(host, port, "port")  # gRPC would say the same on stderr, in its own words
        if self._settings.reflection:
            told = [*services, health.SERVICE_NAME, reflection.SERVICE_NAME]
            reflection.enable_server_reflection(told, self._server, CommentedPool())
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        secrets = credentials.server_credentials(self._access)
        credentials.require_privacy(self._access, host, secrets is not None)
        bound = _bind(self._server, host, port, "port", secrets)
        await self._server.start()
        if self._settings.health_port is not None:
            check_port(host, self._settings.health_port, "health_port")
            self._probes = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._probes)
            self.health_port = _bind(self._probes, host, self._settings.health_port, "health_port")
            await self._probes.start()
        return bound

    async def serving(self) -> None:
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Tells probes and balancers to send nothing more; calls in progress go on."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        """Refuses new calls, waits up to `grace` seconds for those in progress, then cancels them."""
        await self._server.stop(grace)
        if self._probes:
            await self._probes.stop(grace)

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", *self._services):
            await self._health.set(name, status)


def _bind(
    server: grpc.aio.Server, host: str, port: int, setting: str, secrets: grpc.ServerCredentials | None = None
) -> int:
    address = join(host, port)
    try:
        return server.add_secure_port(address, secrets) if secrets else server.add_insecure_port(address)
    except RuntimeError:
        check_port(host, port, setting)  # somebody may have taken it since we looked
        if secrets is None:
            raise
        raise errors.InvalidInputError(
            f"access.certificate, access.key and access.authority make no TLS server on {address}; expected PEM files, "
            "and the key of the certificate"
        ) from None
