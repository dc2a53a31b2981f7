"""Metrics of tracing, in the registry of every service that traces."""

from prometheus_client import Counter

SPANS = Counter(
    "routershift_trace_spans_total",
    "Spans for a collector of traces: taken, refused by it or not delivered, or lost as it was slower than the run "
    "or had not ended in time",
    ["outcome"],
)
for _outcome in ("exported", "failed", "dropped"):
    SPANS.labels(_outcome)  # from 0 on: Prometheus sees no increase from nothing to 1
