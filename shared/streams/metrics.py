"""Metrics of the data path, in every service's registry."""

from prometheus_client import Counter

from shared.streams.keys import Stream

RETRIES = Counter(
    "routershift_redis_retries_total",
    "Commands sent to Redis again: no answer came, the server is loading or not the primary, "
    "it has no memory or disk left, or has not confirmed a write",
    ["reason"],
)
for _reason in ("lost", "failover", "full", "lagging"):
    RETRIES.labels(_reason)  # from 0 on: Prometheus sees no increase from nothing to 1
REDELIVERIES = Counter(
    "routershift_stream_redeliveries_total", "Entries delivered to this service that had been delivered before",
    ["stream"],
)  # fmt: skip
for _stream in Stream:
    REDELIVERIES.labels(_stream)
