"""Generation: the sampler."""

from deploy.grafana.panels import dashboard, lines, quantiles


def generation() -> str:
    """The JSON of the dashboard."""
    return dashboard(
        "routershift-generation",
        "RouterShift / Generation",
        {
            "Latency of streamed calls": [
                lines(
                    "Time to first token", "s", quantiles("routershift_generation_first_token_seconds", 0.5, 0.9, 0.99)
                ),
                lines(
                    "Inter-token latency", "s", quantiles("routershift_generation_inter_token_seconds", 0.5, 0.9, 0.99)
                ),
                lines("Time of a group", "s", quantiles("routershift_generation_group_seconds", 0.5, 0.99)),
            ],
            "Engine": [
                lines(
                    "Sequences",
                    "none",
                    {
                        "running {{instance}}": "routershift_generation_running_sequences",
                        "waiting {{instance}}": "routershift_generation_waiting_sequences",
                    },
                ),
                lines(
                    "KV cache", "percentunit", {"{{instance}}": "routershift_generation_kv_cache_usage_ratio"}, most=1
                ),
                lines(
                    "Preempted and repeated",
                    "short",
                    {
                        "preempted": "sum(increase(routershift_generation_preemptions_total[5m]))",
                        "begun again": "sum(increase(routershift_generation_samples_repeated_total[5m]))",
                    },
                    "Sequences in 5 minutes.",
                ),
            ],
            "Weight updates": [
                lines("Version", "none", {"{{instance}}": "routershift_generation_weights_version"}),
                lines(
                    "Time of an update",
                    "s",
                    {
                        f"{name} {legend}": query
                        for name in ("update", "pause")
                        for legend, query in quantiles(
                            f"routershift_generation_weights_{name}_seconds", 0.5, 0.9
                        ).items()
                    },
                    "pause: nothing is sampled.",
                ),
                lines(
                    "Refused",
                    "none",
                    {"{{reason}}": "sum by (reason) (increase(routershift_generation_weights_refused_total[10m]))"},
                    "In 10 minutes.",
                ),
                lines(
                    "Sent over the network",
                    "none",
                    {"{{outcome}}": "sum by (outcome) (increase(routershift_learner_transfers_total[10m]))"},
                    "Versions in 10 minutes, where run.weights_transfer is broadcast.",
                ),
            ],
            "Traffic": [
                lines(
                    "Tokens per second",
                    "short",
                    {"{{kind}}": "sum by (kind) (rate(routershift_generation_tokens_total[1m]))"},
                ),
                lines(
                    "Router traces",
                    "Bps",
                    {"bytes": "sum(rate(routershift_generation_router_bytes_total[1m]))"},
                    "As they travel.",
                ),
                lines(
                    "gRPC calls",
                    "ops",
                    {
                        "{{method}} {{outcome}}": (
                            "sum by (method, outcome) (rate(routershift_generation_requests_total[1m]))"
                        )
                    },
                ),
                lines(
                    "Trajectories per second",
                    "short",
                    {"handed over": "sum(rate(routershift_generation_rollouts_total[1m]))"},
                ),
                lines(
                    "Prefix cache of vLLM",
                    "percentunit",
                    {
                        "hits": (
                            "sum(rate(vllm:prefix_cache_hits_total[5m])) "
                            "/ sum(rate(vllm:prefix_cache_queries_total[5m]))"
                        )
                    },
                    "Share of prompt tokens; empty with the torch engine.",
                    most=1,
                ),
            ],
        },
    )
