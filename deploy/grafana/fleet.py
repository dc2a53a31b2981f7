"""Fleet: all runs of a Prometheus beside each other, what their GPUs do, and what that costs."""

from deploy.grafana.panels import dashboard, lines

_RUN = "{{namespace}} {{run}}"
_TRAINED = "sum by (namespace, run) (rate(routershift_learner_trajectories_trained_total[10m]))"
_DROPPED = "sum by (namespace, run) (rate(routershift_learner_trajectories_dropped_total[10m]))"


def fleet() -> str:
    """The JSON of the dashboard."""
    return dashboard(
        "routershift-fleet",
        "RouterShift / Fleet",
        {
            "Runs": [
                lines("Reward", "short", {_RUN: "namespace_run:routershift_learner_reward:avg15m"}, "Of 15 minutes."),
                lines(
                    "Best held-out accuracy",
                    "percentunit",
                    {_RUN: "max by (namespace, run) (routershift_curriculum_best_accuracy)"},
                    "On the first held-out set.",
                    most=1,
                ),
                lines("Step", "none", {_RUN: "max by (namespace, run) (routershift_learner_step)"}),
            ],
            "GPUs": [
                lines(
                    "GPUs held",
                    "none",
                    {
                        f"{_RUN} {{{{job}}}}": (
                            'sum by (namespace, run, job) (routershift_gpus{job=~"learner|generation"})'
                        )
                    },
                    stacked=True,
                ),
                lines(
                    "GPUs idle",
                    "none",
                    {_RUN: "namespace_run:routershift_gpus_idle:avg5m"},
                    "Mean of 5 minutes: a learner's while it waits for rollouts, a sampler's while it has no sequence.",
                    stacked=True,
                ),
                lines(
                    "Idle share",
                    "percentunit",
                    {
                        _RUN: (
                            "namespace_run:routershift_gpus_idle:avg5m "
                            "/ on (namespace, run) clamp_min(sum by (namespace, run) (routershift_gpus), 1)"
                        )
                    },
                    "0 for a run without GPUs.",
                    most=1,
                ),
            ],
            "Cost": [
                lines(
                    "Cost of an hour",
                    "short",
                    {_RUN: "namespace_run:routershift_cost:per_hour"},
                    "GPUs held, by run.gpu_hour_price of each run, in its currency.",
                    stacked=True,
                ),
                lines(
                    "Cost of a thousand trained rollouts",
                    "short",
                    {_RUN: f"namespace_run:routershift_cost:per_hour / on (namespace, run) ({_TRAINED} * 3.6 > 0)"},
                    "At the pace of the last 10 minutes; nothing while a run trains on none.",
                ),
                lines("Rollouts trained on", "ops", {_RUN: _TRAINED}),
            ],
            "Trouble": [
                lines(
                    "Rollouts dropped",
                    "percentunit",
                    {_RUN: f"{_DROPPED} / ({_DROPPED} + {_TRAINED} > 0)"},
                    "Of those that reached the learner, in 10 minutes.",
                    most=1,
                ),
                lines(
                    "Services that answer",
                    "none",
                    {_RUN: "sum by (namespace, run) (namespace_run_job:routershift_services:count)"},
                ),
                lines(
                    "Alerts that fire",
                    "none",
                    {
                        _RUN: (
                            'count by (namespace, run) (ALERTS{alertstate="firing"}) '
                            "or 0 * sum by (namespace, run) (namespace_run_job:routershift_services:count)"
                        )
                    },
                ),
            ],
        },
    )
