"""gRPC servers: health, reflection, and the guard before both."""

from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from routershift.client import status
from shared import errors
from shared.rpc import credentials
from shared.rpc.access import AccessControl
from shared.rpc.address import check_port, join
from shared.rpc.guard import Guard
from shared.rpc.schema import CommentedPool
from shared.settings import AccessSettings, ServerSettings

_MAX_CONCURRENT_STREAMS = 1024
# A client sends a small message again where gRPC itself refuses it, and one above 256 KiB never: see `Guard`.
_SLACK_BYTES = 1 << 20
_PROBE_BYTES = 1 << 10  # longest question about health


async def begin(context: Any) -> None:
    """Tells the client that work has begun, so that its channel does not send the call again if the connection is lost.

    A method calls it once it has admitted a request, and before what costs time: until then UNAVAILABLE and
    RESOURCE_EXHAUSTED are tried again. gRPC's word for it: response headers commit a call.
    """
    await context.send_initial_metadata(())


class Server:
    """A gRPC server with health on it, and reflection."""

    def __init__(self, access: AccessSettings | None = None, settings: ServerSettings | None = None) -> None:
        """Args: access: who may come in; default: everybody. settings: its limits.

        Raises:
            NotFoundError, InvalidInputError: a file of tokens that is missing or wrong.
        """
        self._access, self._settings = access or AccessSettings(), settings or ServerSettings()
        self._server = grpc.aio.server(
            interceptors=[Guard(AccessControl(self._access, self._settings), self._settings)],
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
                # It widens the window of every connection to megabytes, also of those that wait for their turn.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.max_concurrent_streams", _MAX_CONCURRENT_STREAMS),
                ("grpc.max_allowed_incoming_connections", self._settings.max_connections),
                ("grpc.server_handshake_timeout_ms", round(1000 * self._settings.receive_seconds)),
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
            self._probes = grpc.aio.server(
                options=[
                    ("grpc.so_reuseport", 0),
                    ("grpc.max_receive_message_length", _PROBE_BYTES),
                    ("grpc.max_allowed_incoming_connections", self._settings.max_connections),
                    ("grpc.server_handshake_timeout_ms", round(1000 * self._settings.receive_seconds)),
                ]
            )
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
