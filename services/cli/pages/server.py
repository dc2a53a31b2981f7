"""Serves the page of a run: read only, and to this machine alone unless told otherwise.

Whoever reaches the port can read prompts and responses, and a page of some other site can make a browser ask. So it
answers no name that is not its own, which DNS rebinding needs, and lets no other site read what it says.
"""

import ipaddress
import socket
import sys
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from services.cli.pages.sample_table import Query, SampleTable, whole_number
from services.cli.pages.view import state, view
from shared.errors import InvalidInputError, NotFoundError, PreconditionError, RouterShiftError
from shared.rpc.address import join
from shared.tracking import records

_STATUS = ((NotFoundError, HTTPStatus.NOT_FOUND), (InvalidInputError, HTTPStatus.BAD_REQUEST))
_IDLE_SECONDS = 30.0
_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}


class ViewServer(ThreadingHTTPServer):
    """Listens from its construction on; `serve_forever` answers."""

    daemon_threads = True

    def __init__(self, folder: Path, host: str, port: int) -> None:
        """Args: port: 0 for any free one.

        Raises:
            PreconditionError: it cannot listen there.
        """
        self.folder = folder
        self.table = SampleTable(folder)
        self.host = host
        self._page = "", b""  # by its tag
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.address_family = family
            super().__init__((str(address[0]), port), _Handler)
        except OSError as error:
            raise PreconditionError(
                f"cannot listen at {host}:{port}: {error.strerror}; give another --port, or 0 for a free one"
            ) from None

    @property
    def address(self) -> str:
        """HOST:PORT, as in a URL."""
        return join(self.host, self.server_address[1])

    @property
    def url(self) -> str:
        return f"http://{self.address}/"

    def page(self, tag: str) -> bytes:
        """The page of this tag, made once for all who look."""
        known, page = self._page
        if known != tag:
            page = view(self.folder, tag).encode()
            self._page = tag, page
        return page

    def knows(self, host_header: str) -> bool:
        """Whether a request is meant for us: addressed by number, as localhost, or by the name that we were given.

        A name of someone else that leads here is what DNS rebinding does.
        """
        host = urlsplit(f"//{host_header}").hostname or ""
        if host in ("localhost", self.host, socket.gethostname().lower()):
            return True
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A reader that went away is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    server_version = "routershift"
    sys_version = ""
    timeout = _IDLE_SECONDS

    def do_GET(self) -> None:
        try:
            if not self.server.knows(self.headers.get("Host", "")):
                self._error(HTTPStatus.MISDIRECTED_REQUEST, "this server is asked by its address or as localhost")
                return
            url = urlsplit(self.path)
            route = _ROUTES.get(url.path)
            if route is None:
                raise NotFoundError(f"there is nothing at {url.path}; see /")
            route(self, dict(parse_qsl(url.query, keep_blank_values=True, max_num_fields=20)))
        except RouterShiftError as error:
            status = next((code for kind, code in _STATUS if isinstance(error, kind)), HTTPStatus.INTERNAL_SERVER_ERROR)
            self._error(status, str(error))
        except ValueError as error:
            self._error(HTTPStatus.BAD_REQUEST, str(error))
        except ConnectionError:
            raise  # the reader went away: there is nobody to tell
        except OSError as error:
            self._error(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error.filename}: {error.strerror}")

    do_HEAD = do_GET  # noqa: N815  # as the base class calls it

    def _page(self, _: Mapping[str, str]) -> None:
        tag = f'"{state(self.server.folder, self.server.table.index_bytes())}"'
        if self.headers.get("If-None-Match") == tag:
            self._send(HTTPStatus.NOT_MODIFIED, "", b"", {"ETag": tag})
            return
        self._send(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page(tag), {"ETag": tag})

    def _samples(self, parameters: Mapping[str, str]) -> None:
        self._json(HTTPStatus.OK, self.server.table.page(Query.of(parameters)).record())

    def _sample(self, parameters: Mapping[str, str]) -> None:
        step = whole_number("step", parameters.get("step", ""))
        self._json(HTTPStatus.OK, self.server.table.sample(step, parameters.get("trajectory", "")))

    def _error(self, status: HTTPStatus, message: str) -> None:
        self._json(status, {"error": message})

    def _json(self, status: HTTPStatus, value: Any) -> None:
        self._send(status, "application/json", records.dumps(value).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes, more: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        if kind:
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """The terminal shows the address and nothing else."""


_ROUTES: Mapping[str, Callable[[_Handler, Mapping[str, str]], None]] = {
    "/": _Handler._page,
    "/api/samples": _Handler._samples,
    "/api/sample": _Handler._sample,
}
