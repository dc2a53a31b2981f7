"""Metrics of the payload store, in the registry of every service that has one."""

from prometheus_client import Counter, Gauge, Histogram

BYTES = Counter(
    "routershift_payload_bytes_total", "Bytes of arrays written to the payload store, or read", ["direction"]
)
OBJECTS = Counter(
    "routershift_payload_objects_total",
    "Objects written; deleted with the end of their group; discarded, as another attempt had been faster; and swept, "
    "as nothing referred to them",
    ["event"],
)
FAILURES = Counter(
    "routershift_payload_failures_total",
    "Calls of the payload store that failed: it is full or cannot be had, and is tried again; an object is lost or "
    "corrupt, and its group goes to the dead letters",
    ["reason"],
)
SECONDS = Histogram(
    "routershift_payload_seconds",
    "Time of writing a group's arrays, waiting included, or of reading them",
    ["direction"],
    buckets=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100),
)
HELD = Gauge("routershift_payload_held_bytes", "Bytes in the payload store at the learner's last sweep")
HELD_OBJECTS = Gauge("routershift_payload_held_objects", "Objects in the payload store at the learner's last sweep")

for _direction in ("written", "read"):
    BYTES.labels(_direction)
    SECONDS.labels(_direction)
for _event in ("written", "deleted", "discarded", "swept"):
    OBJECTS.labels(_event)
for _reason in ("full", "unavailable", "lost", "corrupt"):
    FAILURES.labels(_reason)
