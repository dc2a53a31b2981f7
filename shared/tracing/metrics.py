"""Metrics of tracing, in the registry of every service, also of one that does not trace."""

from prometheus_client import Counter

SPANS = Counter(
    "routershift_trace_spans_total",
    "Spans for a collector of traces: taken, refused by it or not delivered, or lost as it was slower than the run "
    "or had not ended in time",
    ["outcome"],
)
OUTCOMES = ("exported", "failed", "dropped")
