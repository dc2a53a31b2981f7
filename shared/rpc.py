"""gRPC: how every server is built, how errors become status codes, and how channels are opened."""

import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shared import errors

log = logging.getLogger(__name__)

# A group of 64 samples x 1,024 tokens x 1.2 KiB a token stays below it; gRPC's own default is 4 MiB.
MAX_MESSAGE_BYTES = 128 << 20
_MAX_CONCURRENT_STREAMS = 1024

_STATUS: list[tuple[type[errors.RouterShiftError], grpc.StatusCode]] = [
    (errors.InvalidInputError, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.CorruptDataError, grpc.StatusCode.DATA_LOSS),
    (errors.NotFoundError, grpc.StatusCode.NOT_FOUND),
    (errors.PreconditionError, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.OverloadedError, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.UnavailableError, grpc.StatusCode.UNAVAILABLE),
    (errors.DeadlineError, grpc.StatusCode.DEADLINE_EXCEEDED),
    (errors.MissingDependencyError, grpc.StatusCode.UNIMPLEMENTED),
]

# A standard of gRPC's retries: the server says when to come back, and the client's policy waits that long.
_PUSHBACK = "grpc-retry-pushback-ms"

_RETRY = {
    "methodConfig": [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "3s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ],
    # With a headless Service behind dns:///, every call goes to the next replica.
    "loadBalancingConfig": [{"round_robin": {}}],
}


def status_of(error: errors.RouterShiftError) -> grpc.StatusCode:
    return next((code for kind, code in _STATUS if isinstance(error, kind)), grpc.StatusCode.INTERNAL)


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns the errors of `shared.errors` into status codes, and all others into INTERNAL without their text.

    Bytes that are no message of the method's type are an INVALID_ARGUMENT, and an overload says when to come back.
    """

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = await continuation(handler_call_details)
        method = getattr(handler_call_details, "method", "")
        if handler is None or method.startswith("/grpc."):
            return handler
        parse = _lenient(handler.request_deserializer)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                _guard_unary(handler.unary_unary, method), parse, handler.response_serializer
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                _guard_stream(handler.unary_stream, method), parse, handler.response_serializer
            )
        return handler


def _lenient(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """gRPC answers UNKNOWN where parsing raises, so the error goes on as the request, for the guard to raise."""

    def parsed(data: bytes) -> Any:
        try:
            return parse(data) if parse else data
        except DecodeError as error:
            return errors.InvalidInputError(f"request of {len(data)} bytes is no message of this method: {error}")

    return parsed


def _readable(request: Any) -> Any:
    if isinstance(request, errors.InvalidInputError):
        raise request
    return request


async def _abort(context: Any, error: Exception, method: str) -> None:
    if isinstance(error, errors.OverloadedError):
        after = (_PUSHBACK, str(round(1000 * error.retry_after)))
        await context.abort(status_of(error), str(error), (after,))
    if isinstance(error, errors.RouterShiftError):
        await context.abort(status_of(error), str(error))
    log.exception("%s failed", method)
    await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__} in {method}; see the service's log")


def _guard_unary(call: Callable[..., Any], method: str) -> Callable[..., Any]:
    async def guarded(request: Any, context: Any) -> Any:
        try:
            return await call(_readable(request), context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            return await _abort(context, error, method)

    return guarded


def _guard_stream(call: Callable[..., Any], method: str) -> Callable[..., Any]:
    async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for piece in call(_readable(request), context):
                yield piece
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _abort(context, error, method)

    return guarded


class Server:
    """A gRPC server with health and reflection on it."""

    def __init__(self) -> None:
        self._server = grpc.aio.server(
            interceptors=[ErrorInterceptor()],
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_concurrent_streams", _MAX_CONCURRENT_STREAMS),
                ("grpc.so_reuseport", 0),  # else a second server on the same port would go unnoticed
            ],
        )
        self._health = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._services: list[str] = []

    @property
    def grpc(self) -> grpc.aio.Server:
        """For the generated add_..._to_server functions."""
        return self._server

    async def listen(self, host: str, port: int, services: list[str]) -> int:
        """Starts to answer, as NOT_SERVING; gives the port.

        Raises:
            PreconditionError: the port is taken.
        """
        self._services = services
        check_port(host, port, "port")  # gRPC would say the same on stderr, in its own words
        reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        bound = self._server.add_insecure_port(f"{host}:{port}")
        await self._server.start()
        return bound

    async def serving(self) -> None:
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def drain(self) -> None:
        """Tells probes and balancers to send nothing more; calls in progress go on."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        """Refuses new calls, waits up to `grace` seconds for those in progress, then cancels them."""
        await self._server.stop(grace)

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in ("", *self._services):
            await self._health.set(name, status)


def check_port(host: str, port: int, setting: str) -> None:
    """Raises PreconditionError, naming the setting, where the port cannot be bound."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise errors.PreconditionError(
                f"{setting} = {port} on {host} cannot be bound ({(error.strerror or str(error)).lower()}); "
                f"stop what holds it or set {setting} = 0 for a free one"
            ) from None


def channel(target: str) -> grpc.aio.Channel:
    """A channel over all replicas in turn, with our message sizes.

    It tries a call that found a service UNAVAILABLE or RESOURCE_EXHAUSTED again, after the time that the service
    asked for, five times in all.
    """
    return grpc.aio.insecure_channel(
        target,
        options=[
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            ("grpc.service_config", json.dumps(_RETRY)),
            ("grpc.keepalive_time_ms", 60_000),
        ],
    )


def raise_typed(error: grpc.aio.AioRpcError, method: str) -> NoReturn:
    """Raises the error of `shared.errors` that the server had: the inverse of the interceptor."""
    kind = next((kind for kind, code in _STATUS if code == error.code()), errors.UnavailableError)
    message = f"{method}: {error.details()}"
    after = [int(value) for name, value in error.trailing_metadata() or () if name == _PUSHBACK]
    if kind is errors.OverloadedError and after:
        raise errors.OverloadedError(message, after[0] / 1000) from None
    raise kind(message) from None
