"""Metrics of the agent gateway."""

from prometheus_client import Counter

REQUESTS = Counter(
    "routershift_environments_http_requests_total", "HTTP requests, by the status of their answers", ["status"]
)
EPISODES = Counter("routershift_environments_agent_episodes_total", "Episodes of agents that have ended", ["end"])
for _end in ("rewarded", "closed", "timed_out", "unclaimed", "given_up"):
    EPISODES.labels(_end)
TURNS = Counter("routershift_environments_agent_turns_total", "Turns that agents asked for, by their use", ["use"])
for _use in ("trained", "left_out", "failed", "late"):
    TURNS.labels(_use)
BRANCHES = Counter(
    "routershift_environments_agent_branches_total", "Requests of agents that did not go on from the turn before them"
)
FORGED = Counter("routershift_environments_agent_unknown_total", "Requests of agents for an episode that is not there")
