"""Metrics of the reward service; shared/METRICS.md is their table."""

from prometheus_client import Counter, Histogram

SCORES = Counter("routershift_reward_scores_total", "Verifications by outcome", ["verifier", "outcome"])
SECONDS = Histogram(
    "routershift_reward_verification_seconds",
    "Time of one verification",
    ["verifier"],
    buckets=(0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
)
REWARD = Histogram(
    "routershift_reward_value", "Rewards given", ["verifier"], buckets=(-1, -0.5, 0, 0.1, 0.25, 0.5, 0.75, 1)
)
DROPPED = Counter("routershift_reward_trajectories_dropped_total", "Trajectories without a reward", ["reason"])
