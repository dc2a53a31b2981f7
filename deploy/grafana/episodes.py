"""Episodes: the environments, and the agents that come to them over HTTP."""

from deploy.grafana.panels import dashboard, lines, quantiles


def episodes() -> str:
    """The JSON of the dashboard."""
    return dashboard(
        "routershift-episodes",
        "RouterShift / Episodes",
        {
            "Playing": [
                lines(
                    "Episodes per second",
                    "ops",
                    {
                        "{{environment}} {{end}}": (
                            "sum by (environment, end) (rate(routershift_environments_episodes_total[1m]))"
                        )
                    },
                    "length: their turns or tokens were used up.",
                ),
                lines(
                    "Turns of an episode",
                    "short",
                    {
                        "{{environment}}": (
                            "sum by (environment) (rate(routershift_environments_turns_total[5m])) "
                            "/ sum by (environment) (rate(routershift_environments_episodes_total[5m]))"
                        )
                    },
                    "Mean of 5 minutes.",
                ),
                lines("Groups being played", "none", {"{{instance}}": "routershift_environments_playing_groups"}),
            ],
            "Time": [
                lines("Of a group", "s", quantiles("routershift_environments_group_seconds", 0.5, 0.99)),
                lines(
                    "Of a turn of the model", "s", quantiles("routershift_environments_turn_seconds", 0.5, 0.9, 0.99)
                ),
                lines(
                    "Tokens of environments",
                    "short",
                    {
                        "{{environment}}": (
                            "sum by (environment) (rate(routershift_environments_given_tokens_total[1m]))"
                        )
                    },
                    "Per second.",
                ),
            ],
            "Trouble": [
                lines(
                    "Failed attempts of groups",
                    "short",
                    {
                        "{{reason}}": (
                            "sum by (reason) (increase(routershift_environments_failures_total[5m])) "
                            "or sum by (reason) (0 * routershift_environments_trajectories_dropped_total)"
                        )
                    },
                    "In 5 minutes.",
                ),
                lines(
                    "Trajectories dropped",
                    "short",
                    {
                        "{{reason}}": (
                            "sum by (reason) (increase(routershift_environments_trajectories_dropped_total[5m]))"
                        )
                    },
                    "In 5 minutes: their episodes kept failing.",
                ),
                lines(
                    "Hosted episodes",
                    "none",
                    {
                        "open": "sum(routershift_environments_hosted_episodes)",
                        "closed, {{reason}}": (
                            "sum by (reason) (increase(routershift_environments_hosted_ends_total[5m]))"
                        ),
                    },
                    "Of callers of Step; closed ones in 5 minutes.",
                ),
            ],
            "Agents": [
                lines(
                    "Episodes ended",
                    "short",
                    {"{{end}}": "sum by (end) (increase(routershift_environments_agent_episodes_total[5m]))"},
                    "In 5 minutes.",
                ),
                lines(
                    "Turns",
                    "short",
                    {"{{use}}": "sum by (use) (increase(routershift_environments_agent_turns_total[5m]))"},
                    "In 5 minutes, by their use.",
                ),
                lines(
                    "Branches and unknown episodes",
                    "short",
                    {
                        "branches": "sum(increase(routershift_environments_agent_branches_total[5m]))",
                        "unknown": "sum(increase(routershift_environments_agent_unknown_total[5m]))",
                    },
                    "Requests in 5 minutes.",
                ),
            ],
        },
    )
