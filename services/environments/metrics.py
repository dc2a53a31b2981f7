"""Metrics of the environments service."""

from collections.abc import Iterable

from prometheus_client import Counter, Gauge, Histogram

from routershift.v1 import trajectory_pb2 as pb
from services.environments.playing.failures import Reason

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000, 3000)

EPISODES = Counter(
    "routershift_environments_episodes_total", "Episodes that were played to their end", ["environment", "end"]
)
TURNS = Counter("routershift_environments_turns_total", "Turns of the model in them", ["environment"])
GIVEN = Counter(
    "routershift_environments_given_tokens_total",
    "Tokens of the environments in them",
    ["environment"],
)
FAILED = Counter(
    "routershift_environments_failures_total", "Groups whose episodes failed, each attempt", ["environment", "reason"]
)
GROUP_SECONDS = Histogram(
    "routershift_environments_group_seconds", "Time of a group, from its entry to its hand-over", buckets=_SECONDS
)
TURN_SECONDS = Histogram(
    "routershift_environments_turn_seconds", "Time of generation for one turn, retries included", buckets=_SECONDS
)
PLAYING = Gauge("routershift_environments_playing_groups", "Groups being played, from the stream and by calls of Play")
HOSTED = Gauge("routershift_environments_hosted_episodes", "Episodes open for callers of Step")
HOSTED_ENDS = Counter("routershift_environments_hosted_ends_total", "Hosted episodes that are closed", ["reason"])
for _reason in ("closed", "idle", "failed", "drained"):
    HOSTED_ENDS.labels(_reason)
DROPPED = Counter(
    "routershift_environments_trajectories_dropped_total",
    "Trajectories whose episodes kept failing",
    ["reason"],
)
for _reason in Reason:
    DROPPED.labels(_reason)


def turns_of(trajectory: pb.Trajectory) -> int:
    """How often the model spoke."""
    return sum(segment.sampled for segment in trajectory.segments) or 1


def count_group(environment: str, trajectories: Iterable[pb.Trajectory]) -> None:
    """Counts the episodes of a group that was played."""
    for trajectory in trajectories:
        is_cut = trajectory.completion.finish_reason == pb.FINISH_REASON_LENGTH
        EPISODES.labels(environment, "length" if is_cut else "done").inc()
        TURNS.labels(environment).inc(turns_of(trajectory))
        GIVEN.labels(environment).inc(sum(s.tokens for s in trajectory.segments if not s.sampled))
