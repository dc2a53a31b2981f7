"""Run overview: how the run goes, and where its time goes."""

from deploy.grafana.panels import dashboard, lines, quantiles


def overview() -> str:
    """The JSON of the dashboard."""
    return dashboard(
        "routershift-overview",
        "RouterShift / Run overview",
        {
            "Learning": [
                lines(
                    "Reward",
                    "short",
                    {
                        "batch": "namespace_run:routershift_learner_reward:mean",
                        "15 minutes": "namespace_run:routershift_learner_reward:avg15m",
                    },
                    "Mean over the trajectories of a batch.",
                ),
                lines(
                    "Accuracy",
                    "percentunit",
                    {
                        "training batch": "routershift_learner_train_accuracy",
                        "{{set}}, {{decoding}}": "routershift_curriculum_held_out_accuracy",
                        "best held out": "routershift_curriculum_best_accuracy",
                    },
                    most=1,
                ),
                lines(
                    "Held-out pass@k",
                    "percentunit",
                    {"{{set}}, k = {{k}}": "routershift_curriculum_held_out_pass_at_k"},
                    most=1,
                ),
            ],
            "Pace": [
                lines(
                    "Tokens per second",
                    "short",
                    {
                        "sampled": 'sum(rate(routershift_generation_tokens_total{kind="response"}[1m]))',
                        "trained on": "sum(rate(routershift_learner_tokens_trained_total[1m]))",
                    },
                    "Both are counted when a group or a batch is done.",
                ),
                lines(
                    "Where the learner's time goes",
                    "percentunit",
                    {
                        "{{phase}}": (
                            "sum by (phase) (rate(routershift_learner_phase_seconds_total[5m])) "
                            "/ ignoring (phase) group_left () sum(rate(routershift_learner_phase_seconds_total[5m]))"
                        )
                    },
                    "wait is for rollouts.",
                    stacked=True,
                    most=1,
                ),
                lines(
                    "Versions",
                    "none",
                    {
                        "published": "max(routershift_learner_weights_version)",
                        "sampled from, oldest": "min(routershift_generation_weights_version)",
                        "evaluated": "routershift_curriculum_evaluated_version",
                    },
                ),
            ],
            "Freshness": [
                lines(
                    "Staleness",
                    "short",
                    quantiles("routershift_learner_staleness_versions", 0.5, 0.9, 0.99),
                    "Versions between a group's oldest token and the step that trains on it.",
                ),
                lines(
                    "Age",
                    "s",
                    quantiles("routershift_learner_staleness_seconds", 0.5, 0.9),
                    "From sampling to training.",
                ),
                lines(
                    "Trajectories dropped",
                    "short",
                    {
                        "learner, {{reason}}": (
                            "sum by (reason) (increase(routershift_learner_trajectories_dropped_total[5m]))"
                        ),
                        "reward, {{reason}}": (
                            "sum by (reason) (increase(routershift_reward_trajectories_dropped_total[5m]))"
                        ),
                        "generation, {{reason}}": (
                            "sum by (reason) (increase(routershift_generation_trajectories_dropped_total[5m]))"
                        ),
                    },
                    "In 5 minutes.",
                ),
            ],
            "Health": [
                lines(
                    "Services that answer",
                    "none",
                    {"{{job}}": "sum by (job) (namespace_run_job:routershift_services:count)"},
                ),
                lines("The learner is", "none", {"{{state}}": "max by (state) (routershift_learner_state)"}, most=1),
                lines("Alerts", "none", {"{{alertname}} {{alertstate}}": "sum by (alertname, alertstate) (ALERTS)"}),
            ],
        },
    )
