"""Metrics of the learner."""

from prometheus_client import Counter, Gauge, Histogram

STEP = Gauge("routershift_learner_step", "Optimizer batches done")
VERSION = Gauge("routershift_learner_weights_version", "Policy version last published")
TRAJECTORIES = Counter("routershift_learner_trajectories_trained_total", "Trajectories trained on")
TOKENS = Counter("routershift_learner_tokens_trained_total", "Response tokens trained on")
DROPPED = Counter("routershift_learner_trajectories_dropped_total", "Trajectories not trained on", ["reason"])
for _reason in ("stale", "zero_variance", "overlong", "decided", "run_finished", "non_finite", "dead"):
    DROPPED.labels(_reason)
REPEATED = Counter(
    "routershift_learner_trajectories_repeated_total",
    "Trajectories delivered again after they were trained on, and settled only",
)
STALENESS = Histogram(
    "routershift_learner_staleness_versions",
    "Versions between a group's oldest token and the step that trains on it",
    buckets=(0, 1, 2, 3, 4, 6, 8, 12, 16),
)
AGE = Histogram(
    "routershift_learner_staleness_seconds",
    "Time from the end of generation to training",
    buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000),
)
REWARD = Gauge("routershift_learner_reward_mean", "Mean reward of the last batch")
TRAIN_ACCURACY = Gauge("routershift_learner_train_accuracy", "Share of correct responses in the last batch")
PHASE_SECONDS = Counter("routershift_learner_phase_seconds_total", "Where the time of a step goes", ["phase"])
for _phase in ("wait", "train", "publish", "checkpoint"):
    PHASE_SECONDS.labels(_phase)
DIAGNOSTIC = {
    name: Gauge(f"routershift_learner_{name}", text)
    for name, text in {
        "loss": "Loss of the last batch",
        "grad_norm": "Gradient norm before clipping",
        "clip_fraction": "Share of tokens whose ratio was clipped",
        "dropped_fraction": "Share of tokens that the correction dropped",
        "kl": "KL divergence of the policy from the behaviour policy, estimated on its samples, in nats",
        "reference_kl": "KL divergence of the policy from the model of the start, in nats",
        "entropy": "Mean entropy of the policy over response tokens, in nats",
        "gamma_mean": "Mean of gamma, the router shift factor, before its floor",
        "gamma_p10": "10th percentile of gamma",
        "gamma_floor_fraction": "Share of tokens whose gamma was below gamma_min",
        "gamma_at_lag_zero": "Mean gamma of tokens sampled from the version being trained: engine mismatch alone",
        "gamma_at_lag_zero_p10": "10th percentile of gamma over those tokens",
    }.items()
}
# By the diagnostics' names; a layer is a routed layer, counted from 0.
BY_LAYER = {
    name: Gauge(f"routershift_learner_layer_{metric}", text, ["layer"])
    for name, metric, text in (
        ("router_shift", "router_shift", "Mean over tokens of the router shift of a routed layer, counted from 0"),
        (
            "expert_overlap",
            "expert_overlap_ratio",
            "Share of the experts that the sampler used and the learner chooses too",
        ),
        ("expert_load_max", "expert_load_max_ratio", "Load of the busiest expert over the mean load"),
        ("expert_load_entropy", "expert_load_entropy_ratio", "Entropy of the experts' load over that of an even load"),
    )
}
STATE = Gauge("routershift_learner_state", "1 for what the learner is doing; waiting is for rollouts", ["state"])
CHECKPOINTED = Gauge(
    "routershift_learner_checkpoint_timestamp_seconds",
    "Unix time of the newest checkpoint; of the learner's start where there is none",
)
CHECKPOINT_SECONDS = Counter(
    "routershift_learner_checkpoint_seconds_total",
    "What checkpoints take: training waits for the one before to end and for the copy, and goes on during the write",
    ["part"],
)
for _part in ("wait", "copy", "write"):
    CHECKPOINT_SECONDS.labels(_part)
EARLY_CHECKPOINTS = Counter(
    "routershift_learner_checkpoints_early_total",
    "Checkpoints written ahead of time, because trained groups filled their stream",
)
FLOPS = Counter(
    "routershift_learner_model_flops_total",
    "Floating-point operations that training needs: recomputation, padding and attention left out",
)
SKIPPED = Counter("routershift_learner_steps_skipped_total", "Batches skipped", ["reason"])
SKIPPED.labels("non_finite")
RUNNING_REWARD = Gauge(
    "routershift_learner_reward_running_mean", "Running mean of the reward, where `learner.collapse.window` watches it"
)
COLLAPSED = Gauge("routershift_learner_reward_collapsed", "1 while the running mean has fallen too far from its best")
TORN = Counter("routershift_learner_checkpoints_torn_total", "Checkpoints passed over because they were not whole")
REFUSED_WRITES = Counter(
    "routershift_learner_writes_refused_total", "Writes that the disk refused: full, read-only or gone", ["write"]
)
for _write in ("checkpoint", "trained_list", "weights", "record", "skipped_batch", "samples"):
    REFUSED_WRITES.labels(_write)  # from 0 on: Prometheus sees no increase from nothing to 1
SAMPLES = Counter("routershift_learner_samples_total", "Samples for `routershift rollouts`", ["outcome"])
for _outcome in ("kept", "refused", "no_room", "behind", "failed"):
    SAMPLES.labels(_outcome)
TRANSFERS = Counter(
    "routershift_learner_transfers_total",
    "Versions sent over the network; a failed one did not reach every replica that was there",
    ["outcome"],
)
for _outcome in ("ok", "failed"):
    TRANSFERS.labels(_outcome)
