"""Metrics of the generation service; shared/METRICS.md is their table."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

from shared.errors import RouterShiftError
from shared.rpc import status_of

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)

TOKENS = Counter("routershift_generation_tokens_total", "Tokens by kind", ["kind"])
ROLLOUTS = Counter("routershift_generation_rollouts_total", "Trajectories handed to the rollouts stream")
GROUP_SECONDS = Histogram("routershift_generation_group_seconds", "Time to sample a group", buckets=_SECONDS)
REQUESTS = Counter(
    "routershift_generation_requests_total", "gRPC requests by method and outcome", ["method", "outcome"]
)
RUNNING = Gauge("routershift_generation_running_sequences", "Sequences that have begun")
WAITING = Gauge("routershift_generation_waiting_sequences", "Sequences that have not begun")
VERSION = Gauge("routershift_generation_weights_version", "Policy version that samples now")
UPDATE_SECONDS = Histogram(
    "routershift_generation_weights_update_seconds", "Time to take new weights", buckets=_SECONDS
)
UPDATES_REFUSED = Counter("routershift_generation_weights_refused_total", "Published weights not taken", ["reason"])
ROUTER_BYTES = Counter("routershift_generation_router_bytes_total", "Bytes of router traces exported")


@contextmanager
def counted(method: str) -> Iterator[None]:
    """Counts a gRPC call by how it ended."""
    outcome = "cancelled"
    try:
        yield
        outcome = "ok"
    except RouterShiftError as error:
        outcome = status_of(error).name.lower()
        raise
    except Exception:
        outcome = "internal"
        raise
    finally:
        REQUESTS.labels(method, outcome).inc()
