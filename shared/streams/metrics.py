"""Metrics of the data path, in every service's registry."""

from prometheus_client import Counter

RETRIES = Counter("routershift_redis_retries_total", "Commands sent to Redis again, by reason", ["reason"])
REDELIVERIES = Counter(
    "routershift_stream_redeliveries_total", "Entries delivered to this service that had been delivered before",
    ["stream"],
)  # fmt: skip
