"""The port where Prometheus reads metrics: few connections, and each for a short time."""

import contextlib
import copy
import socket
import threading
import time
from collections.abc import Iterator
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import REGISTRY, CollectorRegistry, Metric, make_wsgi_app
from prometheus_client.registry import Collector

_POLL_SECONDS = 0.5


class _OfRun(Collector):
    """Everything in the process's registry, each series with the label `run`: one Prometheus scrapes many runs."""

    def __init__(self, run: str) -> None:
        self._label = {"run": run}

    def collect(self) -> Iterator[Metric]:
        for family in REGISTRY.collect():
            labelled = copy.copy(family)
            labelled.samples = [each._replace(labels=self._label | each.labels) for each in family.samples]
            yield labelled


class _Handler(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Scrapes are no events."""


class _MetricsServer(ThreadingMixIn, WSGIServer):
    """Each connection has a thread. Where there are too many, the oldest is closed: a scrape is over in a moment."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, registry: CollectorRegistry, most: int, seconds: float) -> None:
        self.address_family, _, _, _, place = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self._most, self._seconds = most, seconds
        self._open: dict[socket.socket, float] = {}  # since when, oldest first
        self._lock = threading.Lock()
        super().__init__((str(place[0]), int(place[1])), _Handler)
        self.set_app(make_wsgi_app(registry))

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            while len(self._open) >= self._most:
                self._end(next(iter(self._open)))
            self._open[request] = time.monotonic()
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Closes connections that are open for too long, whether they send nothing, little, or read no answer."""
        with self._lock:
            for connection, since in list(self._open.items()):
                if time.monotonic() - since > self._seconds:
                    self._end(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that ended early, by the client or by us, is no event either."""

    def _end(self, connection: socket.socket) -> None:
        """The thread that reads or writes then meets the end, and closes it."""
        self._open.pop(connection, None)
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)


def serve_metrics(host: str, port: int, run: str, most: int = 32, seconds: float = 10.0) -> int:
    """Serves the text format of Prometheus at `/metrics` from a thread until the process ends; gives the port.

    Args:
        run: id of the run, the label `run` of every series.
        most: connections at a time.
        seconds: that a connection may last.

    Raises:
        OSError: it cannot listen there.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_OfRun(run))
    server = _MetricsServer(host, port, registry, most, seconds)
    threading.Thread(target=server.serve_forever, args=(_POLL_SECONDS,), name="metrics", daemon=True).start()
    return server.server_port
