"""Spans: what services record of a prompt's way through them. Off, and free, unless a tracer was installed.

with spans.span(GENERATE, entry.traceparent) as span:
    ...
    span.set({"samples": 8})

A trace begins where a prompt is admitted, and every span of it is a child of that first one. So whoever takes over a
redelivered entry cannot have the wrong parent: there is one for all. What knows OpenTelemetry is `otlp`, and nothing
imports that before traces are wanted.
"""

import time
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Generic, Protocol, Self

from shared.tracing.context import HEADER
from shared.tracing.kinds import AttributesT, Kind


class Recorded(Protocol):
    """A span that a tracer has begun. Times are seconds since 1970."""

    traceparent: str

    def set(self, name: str, value: Any) -> None: ...

    def fail(self, reason: str) -> None: ...

    def end(self, at: float) -> None: ...


class Tracer(Protocol):
    """What records spans."""

    def start(self, kind: Kind[Any], parent: str, began: float, link: str) -> Recorded | None:
        """Begins a span; None where its trace is not sampled.

        Args:
            parent: traceparent; '' for a span that begins a trace.
            link: traceparent of a span in another trace that this one points to; '' for none.
        """
        ...


_tracer: Tracer | None = None  # of this process
_current: ContextVar[str] = ContextVar("traceparent", default="")


def install(tracer: Tracer | None) -> None:
    """Makes this the tracer of the process; None for none."""
    global _tracer
    _tracer = tracer


class Span(Generic[AttributesT]):
    """A span, or what takes its place where nothing is recorded.

    As a block it ends with it, fails with its exception, and is the parent of what the block calls.
    """

    def __init__(self, recorded: Recorded | None) -> None:
        self._recorded = recorded
        self._before = ""

    @property
    def traceparent(self) -> str:
        """What another process needs to go on with the trace; '' where it is not recorded."""
        return self._recorded.traceparent if self._recorded else ""

    def set(self, attributes: AttributesT) -> None:
        if self._recorded:
            for name, value in attributes.items():
                self._recorded.set(name, value)

    def fail(self, reason: str) -> None:
        """Marks it as failed. The reason is a short word, and no message that may hold data."""
        if self._recorded:
            self._recorded.fail(reason)

    def end(self, at: float | None = None) -> None:
        """Ends it, now or at a time (seconds since 1970). One that never ends is not exported."""
        if self._recorded:
            self._recorded.end(time.time() if at is None else at)

    def __enter__(self) -> Self:
        if self._recorded:
            self._before = _current.get()
            _current.set(self._recorded.traceparent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._recorded:
            _current.set(self._before)
            if kind is not None:
                self.fail(kind.__name__)
            self.end()


def root(kind: Kind[AttributesT]) -> Span[AttributesT]:
    """Begins a trace, if it is sampled."""
    return Span(_tracer.start(kind, "", time.time(), "") if _tracer else None)


def span(kind: Kind[AttributesT], parent: str | None = None) -> Span[AttributesT]:
    """Begins a span.

    Args:
        parent: traceparent; '' where nothing is recorded; default: that of the block around.
    """
    above = _current.get() if parent is None else parent
    return Span(_tracer.start(kind, above, time.time(), "") if _tracer and above else None)


def record(
    kind: Kind[AttributesT],
    parent: str,
    attributes: AttributesT,
    began: float | None = None,
    ended: float | None = None,
    *,
    link: str = "",
    failed: str = "",
) -> None:
    """Records a span that is over.

    Args:
        parent: traceparent; '' where nothing is recorded.
        began: seconds since 1970; default: now.
        ended: seconds since 1970; default: now. A clock that was set back makes no span of negative length.
        link: traceparent of a span in another trace that this one points to.
        failed: why it failed, in a short word.
    """
    if not (_tracer and parent):
        return
    end = time.time() if ended is None else ended
    made = Span[AttributesT](_tracer.start(kind, parent, end if began is None else min(began, end), link))
    made.set(attributes)
    if failed:
        made.fail(failed)
    made.end(end)


def metadata() -> tuple[tuple[str, str], ...]:
    """What a gRPC call carries, so that its server goes on with the trace of the block around."""
    return ((HEADER, current),) if (current := _current.get()) else ()
