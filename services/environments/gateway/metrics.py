"""Metrics of the agent gateway."""

from prometheus_client import Counter, Gauge

REQUESTS = Counter(
    "routershift_environments_http_requests_total", "HTTP requests, by the status of their answers", ["status"]
)
EPISODES = Counter("routershift_environments_agent_episodes_total", "Episodes of agents that have ended", ["end"])
for _end in ("rewarded", "closed", "agent_ended", "timed_out", "unclaimed", "given_up"):
    EPISODES.labels(_end)
TURNS = Counter("routershift_environments_agent_turns_total", "Turns that agents asked for, by their use", ["use"])
for _use in ("trained", "left_out", "failed", "late", "recorded"):
    TURNS.labels(_use)
BRANCHES = Counter(
    "routershift_environments_agent_branches_total", "Requests of agents that did not go on from the turn before them"
)
FORGED = Counter("routershift_environments_agent_unknown_total", "Requests of agents for an episode that is not there")
OWN = Gauge("routershift_environments_own_episodes", "Episodes open that callers opened for themselves")
OWN_ENDS = Counter(
    "routershift_environments_own_ends_total",
    "Episodes that callers opened for themselves and that have ended",
    ["end"],
)
for _end in ("rewarded", "closed", "timed_out", "given_up"):
    OWN_ENDS.labels(_end)
RECORDS = Gauge("routershift_environments_records", "Records of such episodes that are kept")
RECORD_BYTES = Gauge("routershift_environments_record_bytes", "Size of such episodes, open and kept, in bytes")
REMOVED = Counter("routershift_environments_records_removed_total", "Records that are not kept any more", ["reason"])
for _reason in ("age", "number", "bytes"):
    REMOVED.labels(_reason)
