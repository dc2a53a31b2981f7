"""Router health: router shift and its causes, which are policy lag and the mismatch of the two engines."""

from deploy.grafana.panels import dashboard, layers, lines


def routers() -> str:
    """The JSON of the dashboard."""
    return dashboard(
        "routershift-routers",
        "RouterShift / Router health",
        {
            "Router shift factor": [
                lines(
                    "gamma",
                    "short",
                    {
                        "mean": "routershift_learner_gamma_mean > 0",
                        "p10": "routershift_learner_gamma_p10 > 0",
                    },
                    "Before its floor. 1: the routers score as they did when the token was sampled.",
                ),
                lines(
                    "Tokens at the floor",
                    "percentunit",
                    {"below gamma_min": "routershift_learner_gamma_floor_fraction"},
                    "Their gradient is scaled by gamma_min, whatever their shift.",
                ),
                lines(
                    "gamma at lag zero",
                    "short",
                    {
                        "mean": "routershift_learner_gamma_at_lag_zero > 0",
                        "p10": "routershift_learner_gamma_at_lag_zero_p10 > 0",
                    },
                    "Of tokens sampled from the version being trained: what the two engines disagree on.",
                ),
            ],
            "By layer": [
                layers(
                    "Router shift",
                    "short",
                    "routershift_learner_layer_router_shift",
                    "Mean over tokens of the distance of log-scores, for each routed layer.",
                ),
                layers(
                    "Overlap of expert sets",
                    "percentunit",
                    "routershift_learner_layer_expert_overlap_ratio",
                    "Share of the experts that the sampler used and the learner chooses too.",
                ),
                lines(
                    "Overlap of expert sets",
                    "percentunit",
                    {
                        "mean": "avg(routershift_learner_layer_expert_overlap_ratio)",
                        "lowest layer": "min(routershift_learner_layer_expert_overlap_ratio)",
                    },
                ),
            ],
            "Experts": [
                layers(
                    "Load of the busiest expert",
                    "short",
                    "routershift_learner_layer_expert_load_max_ratio",
                    "Over the mean load of its layer; 1: all are equal.",
                ),
                layers(
                    "Entropy of expert load",
                    "percentunit",
                    "routershift_learner_layer_expert_load_entropy_ratio",
                    "Of that of an even load; falls where experts die.",
                ),
                lines(
                    "Extremes over layers",
                    "short",
                    {
                        "busiest over mean, highest": "max(routershift_learner_layer_expert_load_max_ratio)",
                        "entropy, lowest": "min(routershift_learner_layer_expert_load_entropy_ratio)",
                    },
                ),
            ],
        },
    )
