"""Metrics of the agent gateway."""

from prometheus_client import Counter

REQUESTS = Counter(
    "routershift_environments_http_requests_total", "HTTP requests, by the status of their answers", ["status"]
)
