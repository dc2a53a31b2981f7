"""Spans by OpenTelemetry, sent to a collector as OTLP over HTTP. The one module that knows the SDK.

Spans wait in a bounded queue for a thread of the SDK. A collector that is away or slow costs spans, which are counted,
and nothing else. No provider is made global: what else in the process uses OpenTelemetry, such as vLLM, is left alone.
"""

import logging
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any
from urllib.parse import urlsplit

import requests
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, TraceIdRatioBased
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)

from routershift.loopback import is_loopback
from shared.tracing.kinds import PREFIX, Kind, Role
from shared.tracing.metrics import SPANS
from shared.tracing.settings import TracesSettings
from shared.tracing.spans import Recorded

log = logging.getLogger(__name__)

_SCOPE = "routershift"
_DELAY_SECONDS = 1.0  # after which a batch that is not full is sent
_BATCH = 512
_LONGEST_ATTRIBUTE = 256  # characters: a name in an entry may be anything
_KINDS = {
    Role.INTERNAL: SpanKind.INTERNAL,
    Role.PRODUCER: SpanKind.PRODUCER,
    Role.CONSUMER: SpanKind.CONSUMER,
    Role.SERVER: SpanKind.SERVER,
}
# Where the SDK says what it could not send, once a batch; see `_Reasons`.
_SAYS = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


class OtlpTracer:
    """Records spans and sends them. Close it."""

    def __init__(self, settings: TracesSettings, headers: Mapping[str, str], service: str, run_id: str) -> None:
        """Args: headers: for the collector, beside those in the environment variables of OpenTelemetry."""
        self._settings = settings
        resource = Resource.create(
            {
                "service.name": f"{_SCOPE}-{service}",
                "service.namespace": _SCOPE,
                "service.version": version(_SCOPE),
                "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
                f"{PREFIX}run": run_id,
            }
        )
        session = requests.Session()
        session.trust_env = not is_loopback(urlsplit(settings.url).netloc)  # no proxy leads back to this machine
        exporter = OTLPSpanExporter(
            settings.url, headers=dict(headers), timeout=settings.timeout_seconds, session=session
        )
        self._waiting = _Waiting(settings.max_waiting)
        self._reasons = _Reasons()
        logging.getLogger(_SAYS).addFilter(self._reasons)
        counted = _Counted(exporter, settings.url, self._waiting, self._reasons)
        self._processor = _Bounded(counted, self._waiting, settings.max_waiting)
        # Whether a prompt has a trace is decided once, from the trace's id; the rest of a trace goes by its parent.
        self._all = self._provider(resource, ParentBased(ALWAYS_ON))
        self._some = self._provider(resource, TraceIdRatioBased(settings.share))
        self._tracers = {
            is_sampled: provider.get_tracer(_SCOPE, version(_SCOPE))
            for is_sampled, provider in ((False, self._all), (True, self._some))
        }

    def start(self, kind: Kind[Any], parent: str, began: float, link: str) -> Recorded | None:
        """See `spans.Tracer`."""
        span = self._tracers[kind.is_sampled and not parent].start_span(
            kind.name,
            set_span_in_context(NonRecordingSpan(_context(parent)), Context()) if parent else Context(),
            _KINDS[kind.role],
            links=[Link(_context(link))] if link else (),
            start_time=_nanoseconds(began),
        )
        return _Recorded(span) if span.is_recording() else None

    def close(self) -> None:
        """Sends what waits, for `traces.close_seconds`; what is left then is counted as dropped."""
        closing = threading.Thread(target=self._processor.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(self._settings.close_seconds)
        if lost := self._waiting.give_up():
            log.error(
                "traces: %d spans were not sent to %s within %g s (traces.close_seconds) and are lost",
                lost, self._settings.url, self._settings.close_seconds,
            )  # fmt: skip
        logging.getLogger(_SAYS).removeFilter(self._reasons)

    def _provider(self, resource: Resource, sampler: Any) -> TracerProvider:
        limits = SpanLimits(max_span_attribute_length=_LONGEST_ATTRIBUTE)
        provider = TracerProvider(sampler, resource, shutdown_on_exit=False, span_limits=limits)
        provider.add_span_processor(self._processor)
        return provider


class _Recorded:
    """A span of the SDK."""

    def __init__(self, span: Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.traceparent = (
            f"00-{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}-{context.trace_flags:02x}"
        )

    def set(self, name: str, value: Any) -> None:
        self._span.set_attribute(PREFIX + name, value)

    def fail(self, reason: str) -> None:
        self._span.set_status(Status(StatusCode.ERROR, reason))

    def end(self, at: float) -> None:
        self._span.end(_nanoseconds(at))


class _Waiting:
    """How many spans wait or are being sent, and what became of the others. Each is counted once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._count = 0
        self._is_given_up = False
        self._lock = threading.Lock()  # spans end in the event loop and in threads, and are sent by another

    def take(self) -> bool:
        """Whether there is room for one more; one without is dropped."""
        with self._lock:
            if not self._is_given_up and self._count < self._most:
                self._count += 1
                return True
            SPANS.labels("dropped").inc()
            return False

    def settle(self, outcome: str, count: int) -> None:
        with self._lock:
            if not self._is_given_up:
                self._count -= count
                SPANS.labels(outcome).inc(count)

    def give_up(self) -> int:
        """Counts as dropped what is not settled, whatever is still done with it; says how many that are."""
        with self._lock:
            self._is_given_up = True
            SPANS.labels("dropped").inc(self._count)
            return self._count


class _Counted(SpanExporter):
    """Counts what became of the spans that are sent, and says why where that changes."""

    def __init__(self, exporter: SpanExporter, url: str, waiting: _Waiting, reasons: "_Reasons") -> None:
        self._exporter = exporter
        self._url = url
        self._waiting = waiting
        self._reasons = reasons
        self._is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception as error:  # whatever the SDK raises: it is one batch, and its thread has to go on
            self._reasons.last = f"{type(error).__name__}: {error}"
            result = SpanExportResult.FAILURE
        ok = result is SpanExportResult.SUCCESS
        self._waiting.settle("exported" if ok else "failed", len(spans))
        if not ok and not self._is_failing:
            log.error("traces: %s takes no spans, which are lost until it does: %s", self._url, self._reasons.last)
        elif ok and self._is_failing:
            log.info("traces: %s takes spans again", self._url)
        self._is_failing = not ok
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class _Reasons(logging.Filter):
    """Keeps what the exporter logs for each batch, to be said once."""

    last = "no reason given"

    def filter(self, record: logging.LogRecord) -> bool:
        self.last = " ".join(record.getMessage().split())
        return False


class _Bounded(BatchSpanProcessor):
    """Queues a span where there is room: the SDK's own queue would drop the oldest one, and tell only its log."""

    def __init__(self, exporter: SpanExporter, waiting: _Waiting, most: int) -> None:
        super().__init__(
            exporter,
            max_queue_size=most,
            schedule_delay_millis=1000 * _DELAY_SECONDS,
            max_export_batch_size=_BATCH,
        )
        self._waiting = waiting

    def on_end(self, span: ReadableSpan) -> None:
        if self._waiting.take():
            super().on_end(span)


def _context(traceparent: str) -> SpanContext:
    """What a traceparent says that `context.sampled` has let through."""
    _, trace, span, flags = traceparent.split("-")
    return SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16)))


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
