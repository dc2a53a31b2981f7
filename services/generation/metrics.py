"""Metrics of the generation service."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import Counter, Gauge, Histogram

from routershift.client.status import status_of
from routershift.trajectory import Completion
from routershift.v1 import trajectory_pb2 as pb
from shared.errors import RouterShiftError

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)

TOKENS = Counter("routershift_generation_tokens_total", "Tokens of groups handed over and of gRPC calls", ["kind"])
for _kind in ("prompt", "response"):
    TOKENS.labels(_kind)
ROLLOUTS = Counter("routershift_generation_rollouts_total", "Trajectories handed to the rollouts stream")
GROUP_SECONDS = Histogram("routershift_generation_group_seconds", "Time to sample a group", buckets=_SECONDS)
REQUESTS = Counter("routershift_generation_requests_total", "gRPC calls", ["method", "outcome"])
RUNNING = Gauge("routershift_generation_running_sequences", "Sequences that have begun")
WAITING = Gauge("routershift_generation_waiting_sequences", "Sequences that have not begun")
KV_CACHE_USAGE = Gauge("routershift_generation_kv_cache_usage_ratio", "Share of the KV cache in use")
PREEMPTIONS = Counter(
    "routershift_generation_preemptions_total", "Sequences whose KV cache was given to others, and computed again"
)
FIRST_TOKEN_SECONDS = Histogram(
    "routershift_generation_first_token_seconds", "Time to the first token of a streamed call", buckets=_SECONDS
)
TOKEN_SECONDS = Histogram(
    "routershift_generation_inter_token_seconds",
    "Time from token to token of a streamed sample",
    buckets=_TOKEN_SECONDS,
)
SAMPLED_AGAIN = Counter(
    "routershift_generation_samples_repeated_total", "Samples of groups that the engine aborted, begun again"
)
EARLY_SCORES = Counter(
    "routershift_generation_early_scores_total",
    "Samples that reward was asked to score before their group",
    ["outcome"],
)
for _outcome in ("answered", "failed"):
    EARLY_SCORES.labels(_outcome)
DECIDED = Counter(
    "routershift_generation_groups_decided_total",
    "Groups with equal first rewards: stopped, or sampled to their end and then equal or mixed",
    ["outcome"],
)
for _outcome in ("stopped", "equal", "mixed"):
    DECIDED.labels(_outcome)
DROPPED = Counter("routershift_generation_trajectories_dropped_total", "Trajectories given up", ["reason"])
DROPPED.labels("aborted")
VERSION = Gauge("routershift_generation_weights_version", "Policy version that samples now")
UPDATE_SECONDS = Histogram(
    "routershift_generation_weights_update_seconds", "Time to verify and take new weights", buckets=_SECONDS
)
PAUSE_SECONDS = Histogram(
    "routershift_generation_weights_pause_seconds", "Time of an update in which nothing was sampled", buckets=_SECONDS
)
UPDATES_REFUSED = Counter("routershift_generation_weights_refused_total", "Published weights not taken", ["reason"])
for _reason in ("notfound", "corruptdata", "invalidinput", "precondition"):
    UPDATES_REFUSED.labels(_reason)  # from 0 on: Prometheus sees no increase from nothing to 1
WEIGHTS_BYTES = Counter(
    "routershift_generation_weights_bytes_total", "Bytes of new weights that were read or received", ["kind"]
)
for _kind in ("full", "delta", "broadcast", "broadcast_delta"):
    WEIGHTS_BYTES.labels(_kind)
DELTAS_REFUSED = Counter(
    "routershift_generation_weights_deltas_refused_total", "Versions read whole though a delta was there", ["reason"]
)
for _reason in ("base", "notfound", "corruptdata"):
    DELTAS_REFUSED.labels(_reason)
ROUTER_BYTES = Counter("routershift_generation_router_bytes_total", "Bytes of router traces exported")


def count_tokens(prompt: Sequence[int], completions: Iterable[Completion]) -> None:
    TOKENS.labels("prompt").inc(len(prompt))
    TOKENS.labels("response").inc(sum(completion.token_ids.size for completion in completions))


def count_router_bytes(completions: Iterable[pb.Completion]) -> None:
    """As they travel: scores may have an 8-bit code there."""
    for completion in completions:
        trace = completion.router_trace
        ROUTER_BYTES.inc(
            sum(len(tensor.data) for tensor in (trace.expert_ids, trace.log_scores, trace.logits, trace.layers))
        )


class Latency:
    """Measures one streamed call, starting at construction."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._latest: dict[int, float] = {}  # by sample

    def observe(self, sample: int, tokens: int) -> None:
        """So many tokens of a sample have come; those of one piece share its time."""
        now = time.perf_counter()
        if not self._latest:
            FIRST_TOKEN_SECONDS.observe(now - self._began)
        if tokens and (before := self._latest.get(sample)) is not None:
            TOKEN_SECONDS.observe((now - before) / tokens)
        self._latest[sample] = now


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
