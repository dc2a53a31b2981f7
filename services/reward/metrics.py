"""Metrics of the reward service."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import HistogramMetricFamily


class BulkHistogram:
    """A histogram that takes the values of a batch at once: `Histogram` spends as long on each as a cheap verifier."""

    _labelnames = ("verifier",)

    def __init__(self, name: str, documentation: str, buckets: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = buckets
        self._counts: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}
        REGISTRY.register(self)

    def observe(self, verifier: str, values: Iterable[float]) -> None:
        counts = self._counts.setdefault(verifier, [0] * (len(self._bounds) + 1))
        total = 0.0
        for value in values:
            counts[bisect_left(self._bounds, value)] += 1
            total += value
        self._sums[verifier] = self._sums.get(verifier, 0.0) + total

    def collect(self) -> Iterable[HistogramMetricFamily]:
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)
        bounds = [*map(str, map(float, self._bounds)), "+Inf"]
        for verifier, counts in list(self._counts.items()):
            buckets = list(zip(bounds, accumulate(counts), strict=True))
            family.add_metric([verifier], buckets, self._sums.get(verifier, 0.0))
        yield family


SCORES = Counter("routershift_reward_scores_total", "Verifications", ["verifier", "outcome"])
SECONDS = BulkHistogram(
    "routershift_reward_verification_seconds",
    "Time of one verification",
    buckets=(0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
)
REWARD = BulkHistogram("routershift_reward_value", "Rewards given", buckets=(-1, -0.5, 0, 0.1, 0.25, 0.5, 0.75, 1))
QUEUED = Gauge("routershift_reward_queued_items", "Items being scored or waiting for it")
LOST = Counter("routershift_reward_workers_lost_total", "Worker processes that died or were killed", ["verifier"])
UNSCORED = Counter(
    "routershift_reward_samples_total", "Samples without a verdict, for `routershift rollouts --failed`", ["outcome"]
)
for _outcome in ("kept", "refused", "no_room"):
    UNSCORED.labels(_outcome)
EARLY = Counter(
    "routershift_reward_early_scores_total",
    "Samples scored before their group came: used when it did, without a verdict, or forgotten for others",
    ["outcome"],
)
for _outcome in ("used", "failed", "forgotten"):
    EARLY.labels(_outcome)
DROPPED = Counter("routershift_reward_trajectories_dropped_total", "Trajectories without a reward", ["reason"])
for _reason in ("verifier_failed", "verifier_timed_out", "verifier_refused"):
    DROPPED.labels(_reason)
