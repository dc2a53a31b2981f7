"""Learner: the trainer."""

from grafana_foundation_sdk.builders.dashboard import TextBoxVariable

from deploy.grafana.panels import dashboard, lines


def learner() -> str:
    """The JSON of the dashboard."""
    return dashboard(
        "routershift-learner",
        "RouterShift / Learner",
        {
            "Steps": [
                lines(
                    "Time of a step",
                    "s",
                    {
                        "{{phase}}": (
                            "sum by (phase) (increase(routershift_learner_phase_seconds_total[5m])) "
                            "/ ignoring (phase) group_left () (sum(changes(routershift_learner_step[5m])) > 0)"
                        )
                    },
                    "Mean over 5 minutes.",
                    stacked=True,
                ),
                lines(
                    "Model FLOPs utilisation",
                    "percentunit",
                    {"MFU": "sum(rate(routershift_learner_model_flops_total[10m])) / $peak_flops"},
                    "Of the peak that stands above: that of all devices of the learner together, in its precision.",
                ),
                lines(
                    "Step",
                    "none",
                    {
                        "done": "routershift_learner_step",
                        "skipped, {{reason}}": "routershift_learner_steps_skipped_total",
                    },
                ),
            ],
            "Optimisation": [
                lines("Loss", "short", {"loss": "routershift_learner_loss"}),
                lines("Gradient norm", "short", {"before clipping": "routershift_learner_grad_norm"}),
                lines(
                    "Entropy", "short", {"nats": "routershift_learner_entropy"}, "Of the policy, over response tokens."
                ),
            ],
            "Off-policy": [
                lines(
                    "KL divergence",
                    "short",
                    {
                        "from the behaviour policy": "routershift_learner_kl",
                        "from the start": "routershift_learner_reference_kl",
                    },
                    "In nats.",
                ),
                lines(
                    "Tokens clipped and dropped",
                    "percentunit",
                    {
                        "clipped": "routershift_learner_clip_fraction",
                        "dropped by the correction": "routershift_learner_dropped_fraction",
                    },
                ),
                lines(
                    "Watch over the reward",
                    "short",
                    {
                        "running mean": "routershift_learner_reward_running_mean",
                        "collapsed": "routershift_learner_reward_collapsed",
                    },
                    "Where learner.collapse.window is set.",
                ),
            ],
            "Durability": [
                lines(
                    "Age of the newest checkpoint",
                    "s",
                    {"age": "namespace_run:routershift_learner_checkpoint_age:seconds"},
                    "What a crash would cost.",
                ),
                lines(
                    "Writes refused",
                    "none",
                    {
                        "{{write}}": "sum by (write) (increase(routershift_learner_writes_refused_total[10m]))",
                        "torn checkpoints": "sum(increase(routershift_learner_checkpoints_torn_total[10m]))",
                    },
                    "In 10 minutes.",
                ),
                lines(
                    "Trajectories",
                    "short",
                    {
                        "trained on": "sum(rate(routershift_learner_trajectories_trained_total[5m]))",
                        "delivered again": "sum(rate(routershift_learner_trajectories_repeated_total[5m]))",
                    },
                    "Per second.",
                ),
            ],
        },
        [TextBoxVariable("peak_flops").label("Peak FLOP/s").default_value("989e12")],
    )
