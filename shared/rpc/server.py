"""gRPC servers: health, reflection, access, and errors as status codes."""

import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from shared import errors
from shared.rpc import credentials
from shared.rpc.access import HEALTH, AccessControl
from shared.rpc.status import MAX_MESSAGE_BYTES, PUSHBACK, status_of
from shared.settings import AccessSettings, ServerSettings

log = logging.getLogger(__name__)

_MAX_CONCURRENT_STREAMS = 1024


class Guard(grpc.aio.ServerInterceptor):
    """Lets in whom access control admits; turns the errors of `shared.errors` into status codes, and all others into
    INTERNAL without their text.

    Bytes that are no message of the method's type are an INVALID_ARGUMENT, and an overload says when to come back.
    Health is for everybody.
    """

    def __init__(self, access: AccessControl) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        handler = await continuation(handler_call_details)
        method = getattr(handler_call_details, "method", "")
        if handler is None or method.startswith(HEALTH):
            return handler
        parse, write = _lenient(handler.request_deserializer), handler.response_serializer
        if handler.unary_unary:
            guarded = _guard_unary(handler.unary_unary, method, self._access)
            return grpc.unary_unary_rpc_method_handler(guarded, parse, write)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                _guard_stream(handler.unary_stream, method, self._access), parse, write
            )
        stream: Any = handler.stream_stream  # reflection alone: no service of ours reads a stream
        return grpc.stream_stream_rpc_method_handler(
            _guard_stream(stream, method, self._access), handler.request_deserializer, write
        )


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
        after = (PUSHBACK, str(round(1000 * error.retry_after)))
        await context.abort(status_of(error), str(error), (after,))
    if isinstance(error, errors.RouterShiftError):
        await context.abort(status_of(error), str(error))
    log.exception("%s failed", method)
    await context.abort(grpc.StatusCode.INTERNAL, f"{type(error).__name__} in {method}; see the service's log")


def _guard_unary(call: Callable[..., Any], method: str, access: AccessControl) -> Callable[..., Any]:
    async def guarded(request: Any, context: Any) -> Any:
        try:
            with access.admit(method, context.invocation_metadata() or ()):
                return await call(_readable(request), context)
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            return await _abort(context, error, method)

    return guarded


def _guard_stream(call: Callable[..., Any], method: str, access: AccessControl) -> Callable[..., Any]:
    async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            with access.admit(method, context.invocation_metadata() or ()):
                async for piece in call(_readable(request), context):
                    yield piece
        except grpc.aio.AbortError:
            raise
        except Exception as error:
            await _abort(context, error, method)

    return guarded


class Server:
    """A gRPC server with health on it, and reflection."""

    def __init__(self, access: AccessSettings | None = None, settings: ServerSettings | None = None) -> None:
        """Args: access: who may come in; default: everybody. settings: its limits.

        Raises:
            NotFoundError, InvalidInputError: a file of tokens that is missing or wrong.
        """
        self._access, self._settings = access or AccessSettings(), settings or ServerSettings()
        self._server = grpc.aio.server(
            interceptors=[Guard(AccessControl(self._access, self._settings))],
            options=[
                ("grpc.max_receive_message_length", self._settings.max_request_bytes),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
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
            PreconditionError: the port is taken.
            NotFoundError: a file of certificates is missing.
            InvalidInputError: certificates that are none, or tokens without TLS beyond this machine.
        """
        self._services = services
        check_port(host, port, "port")  # gRPC would say the same on stderr, in its own words
        if self._settings.reflection:
            reflection.enable_server_reflection([*services, health.SERVICE_NAME, reflection.SERVICE_NAME], self._server)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        secrets = credentials.server_credentials(self._access)
        credentials.require_privacy(self._access, host, secrets is not None)
        bound = _bind(self._server, f"{host}:{port}", secrets)
        await self._server.start()
        if self._settings.health_port is not None:
            check_port(host, self._settings.health_port, "health_port")
            self._probes = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
            health_pb2_grpc.add_HealthServicer_to_server(self._health, self._probes)
            self.health_port = self._probes.add_insecure_port(f"{host}:{self._settings.health_port}")
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


def _bind(server: grpc.aio.Server, address: str, secrets: grpc.ServerCredentials | None) -> int:
    if secrets is None:
        return server.add_insecure_port(address)
    try:
        return server.add_secure_port(address, secrets)
    except RuntimeError:
        raise errors.InvalidInputError(
            f"access.certificate, access.key and access.authority make no TLS server on {address}; expected PEM files, "
            "and the key of the certificate"
        ) from None


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
