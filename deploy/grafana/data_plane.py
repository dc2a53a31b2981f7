"""Data plane: the streams between the services, Redis below them, and the reward service between two of them."""

from deploy.grafana.panels import dashboard, lines, quantiles


def data_plane() -> str:
    """The JSON of the dashboard."""
    return dashboard(
        "routershift-data-plane",
        "RouterShift / Data plane",
        {
            "Streams": [
                lines(
                    "Entries", "short", {"{{stream}}": "routershift_stream_entries"}, "Those being worked on included."
                ),
                lines("Bytes", "bytes", {"{{stream}}": "routershift_stream_bytes"}),
                lines(
                    "Age of the oldest entry",
                    "s",
                    {"{{stream}}": "routershift_stream_oldest_entry_seconds"},
                    "Scored entries stay until a checkpoint contains them.",
                ),
            ],
            "Trouble": [
                lines(
                    "Redeliveries",
                    "short",
                    {"{{stream}}": "sum by (stream) (increase(routershift_stream_redeliveries_total[5m]))"},
                    "In 5 minutes.",
                ),
                lines("Dead letters", "none", {"entries": "routershift_stream_dead_letters"}),
                lines(
                    "Commands sent to Redis again",
                    "short",
                    {"{{reason}}": "sum by (reason) (increase(routershift_redis_retries_total[5m]))"},
                    "In 5 minutes.",
                ),
                lines(
                    "Calls refused by access control and limits",
                    "short",
                    {"{{job}} {{reason}}": "sum by (job, reason) (increase(routershift_calls_refused_total[5m]))"},
                    "In 5 minutes.",
                ),
            ],
            "Account": [
                lines("Tickets held", "none", {"groups": "routershift_curriculum_tickets_held"}),
                lines(
                    "Trajectories",
                    "none",
                    {"{{state}}": "routershift_ledger_trajectories"},
                    "All of the run, by state.",
                ),
                lines(
                    "Why no prompt is admitted",
                    "percentunit",
                    {"{{reason}}": "sum by (reason) (rate(routershift_curriculum_wait_seconds_total[1m]))"},
                    "Share of the curriculum's time. tickets: the learner is the slower part.",
                ),
            ],
            "Redis and reward": [
                lines(
                    "Redis memory",
                    "bytes",
                    {"used": "routershift_redis_memory_bytes", "limit": "routershift_redis_memory_limit_bytes > 0"},
                ),
                lines(
                    "Verifications",
                    "ops",
                    {
                        "{{verifier}} {{outcome}}": (
                            "sum by (verifier, outcome) (rate(routershift_reward_scores_total[1m]))"
                        )
                    },
                ),
                lines(
                    "Time of a verification",
                    "s",
                    quantiles("routershift_reward_verification_seconds", 0.5, 0.99, by="verifier"),
                ),
                lines("Items of reward", "none", {"queued": "sum(routershift_reward_queued_items)"}),
                lines(
                    "Verifier processes lost",
                    "none",
                    {"{{verifier}}": "sum by (verifier) (increase(routershift_reward_workers_lost_total[5m]))"},
                    "In 5 minutes.",
                ),
                lines("Rewards given", "short", quantiles("routershift_reward_value", 0.1, 0.5, 0.9, by="verifier")),
            ],
        },
    )
