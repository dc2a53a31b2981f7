"""The HTTP server of the gateway, in the event loop of its service."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from routershift.client.credentials import Watched
from services.environments.gateway.limits import Limits
from services.environments.gateway.settings import GatewaySettings
from shared.errors import InvalidInputError
from shared.process.service import background
from shared.rpc.access import AccessControl
from shared.rpc.address import check_port
from shared.rpc.credentials import require_privacy
from shared.settings import AccessSettings, ServerSettings

log = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 65  # above the 60 s after which common proxies let a silent connection go
_LONGEST_HEADER = 64 << 10
_BACKLOG = 1024
_STOP_SECONDS = 1  # that requests in progress have to end


class GatewayServer:
    """Listens, serves, and stops within a grace."""

    def __init__(self, app: ASGIApp, settings: GatewaySettings, access: AccessSettings, server: ServerSettings) -> None:
        """Args: server: whose host it listens at, and whose calls_per_second it heeds.

        Raises:
            NotFoundError, InvalidInputError: a file of [access] that is missing or wrong.
        """
        self._settings, self._access, self._host = settings, access, server.host
        self._limits = Limits(app, settings, AccessControl(access, server))
        self._config = uvicorn.Config(
            self._limits,
            http=_bounded_protocol(settings),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=_LONGEST_HEADER,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=2 * _STOP_SECONDS,
        )
        self._socket: socket.socket | None = None

    def listen(self) -> int:
        """Takes the port; gives it.

        Raises:
            PortTakenError, PreconditionError: see `check_port`.
            NotFoundError, InvalidInputError: certificates, or tokens in clear text beyond this machine.
        """
        port = self._settings.port
        check_port(self._host, port, "environments.gateway.port")
        self._config.load()
        self._config.ssl = _tls(self._access)
        require_privacy(self._access, self._host, self._config.ssl is not None)
        family, _, _, _, address = socket.getaddrinfo(self._host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
            listening.listen(_BACKLOG)
        except OSError:
            listening.close()
            check_port(self._host, port, "environments.gateway.port")  # somebody may have taken it since we looked
            raise
        listening.setblocking(False)
        self._socket = listening
        return int(listening.getsockname()[1])

    @property
    def scheme(self) -> str:
        return "http" if self._config.ssl is None else "https"

    @property
    def requests(self) -> int:
        """In progress."""
        return self._limits.running

    async def serve(self, stop: asyncio.Event) -> None:
        """Until `stop`; then requests in progress have a second to end, and are answered 503 after it."""
        if self._socket is None:
            raise RuntimeError("serve is called before listen")
        server = _Server(self._config)

        async def stopping() -> None:
            await stop.wait()
            if self.requests:
                log.info("the gateway stops: %d requests in progress, which have %g s", self.requests, _STOP_SECONDS)
            self._limits.stop(_STOP_SECONDS)
            server.should_exit = True

        async with background(stopping()):
            try:
                await server.serve([self._socket])
            finally:
                self._socket.close()


class _Server(uvicorn.Server):
    """One of several things in its process, so signals are not its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _bounded_protocol(settings: GatewaySettings) -> type[H11Protocol]:
    """HTTP/1.1 that bounds connections, and the time until the header of a request has come, which uvicorn does not."""

    class Bounded(H11Protocol):
        _header_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            if len(self.connections) > settings.max_connections:
                transport.abort()
                return
            self._expect_header()

        def data_received(self, data: bytes) -> None:
            self._expect_header()
            super().data_received(data)
            if self._is_in_request():
                self._stop_timer()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            super().connection_lost(exc)

        def _is_in_request(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _expect_header(self) -> None:
            if self._header_timer is None and not self._is_in_request():
                self._header_timer = self.loop.call_later(settings.receive_seconds, self._too_late)

        def _too_late(self) -> None:
            self._header_timer = None
            if not self._is_in_request():
                self.transport.abort()

        def _stop_timer(self) -> None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None

    return Bounded


def _tls(access: AccessSettings) -> ssl.SSLContext | None:
    """As `shared.rpc.credentials` has it for gRPC: a handshake uses what the files say by then."""
    certificate, key, authority = access.certificate, access.key, access.authority
    if certificate is None or key is None:
        return None

    def read() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(certificate, key)
            if authority and access.mutual:
                context.load_verify_locations(authority)
                context.verify_mode = ssl.CERT_REQUIRED
        except ssl.SSLError as error:
            raise InvalidInputError(
                f"access.certificate, access.key and access.authority make no TLS server ({error.reason}); expected "
                "PEM files, and the key of the certificate"
            ) from None
        context.set_alpn_protocols(["http/1.1"])
        return context

    watched = Watched([certificate, key, *([authority] if authority else [])], read)
    context = watched.value

    def newest(connection: Any, name: str | None, _: ssl.SSLContext) -> None:
        if watched.value is not context:
            connection.context = watched.value

    context.sni_callback = newest
    return context
