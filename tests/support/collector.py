"""A collector of OpenTelemetry traces: a real HTTP server that decodes what is posted to it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

from shared.tracing.kinds import PREFIX
from shared.tracing.settings import TracesSettings
from shared.tracing.start import tracing


@dataclass(frozen=True)
class Found:
    """A span as it came."""

    service: str
    run: str
    name: str
    role: str
    trace: str
    id: str
    parent: str  # '' for the first of a trace
    attributes: dict[str, Any]
    links: list[tuple[str, str]]  # trace and span
    began: int  # nanoseconds since 1970
    ended: int
    failed: str | None  # why; None for one that did not


@dataclass
class Collector:
    """Takes spans at `url`, unless it is told to refuse them or to be slow."""

    spans: list[Found] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    requests: int = 0
    status: int = 200
    answers: threading.Event = field(default_factory=threading.Event)  # while it is clear, requests wait

    def __enter__(self) -> Self:
        self.answers.set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()

    @contextmanager
    def tracing(self, service: str = "test", **changes: Any) -> Iterator[None]:
        """What `serve` does around a service; all spans are here after the block."""
        settings = TracesSettings.model_validate({"endpoint": self.url, "close_seconds": 30, **changes})
        with tracing(settings, service, "run"):
            yield

    def named(self, name: str) -> list[Found]:
        return [span for span in self.spans if span.name == name]

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        collector = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.requests += 1
                collector.answers.wait()
                if collector.status == 200:
                    collector.headers.append({"path": self.path, **{k.lower(): v for k, v in self.headers.items()}})
                    collector.spans += decode(body)
                self.send_response(collector.status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return Handler


def decode(body: bytes) -> Iterator[Found]:
    """The spans of a request."""
    for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        about = _values(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                failed = span.status.code == trace_pb2.Status.STATUS_CODE_ERROR
                yield Found(
                    about["service.name"],
                    about[f"{PREFIX}run"],
                    span.name,
                    trace_pb2.Span.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_").lower(),
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    {name.removeprefix(PREFIX): value for name, value in _values(span.attributes).items()},
                    [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    span.status.message if failed else None,
                )


def _values(attributes: Any) -> dict[str, Any]:
    return {attribute.key: _value(attribute) for attribute in attributes}


def _value(attribute: KeyValue) -> Any:
    value: AnyValue = attribute.value
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind else None
