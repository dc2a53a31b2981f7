"""What each setting means for a run that is started again with another value: the one table of these rules.

Whatever reads settings of an earlier start goes by it: `routershift run`, `up` and `fork` for all tables of a recipe,
the learner for a checkpoint. A test holds it against every setting that there is.
"""

from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any


class Rule(StrEnum):
    """What becomes of a start whose value differs from that of the start before."""

    SHAPE = "shape"  # refused; a fork keeps it as well, since tensors of the checkpoint have shapes that follow from it
    IDENTITY = "identity"  # refused: it would be another run; a fork may change it
    KNOB = "knob"  # allowed, and said


_SERVER = (
    "host port metrics_port drain_seconds start_seconds watchdog_seconds health_port reflection max_request_bytes "
    "max_receiving receive_seconds max_connections max_calls calls_per_second"
)
_ROWS = (
    "config split revision preset columns prompt system chat_template template_kwargs tools "
    "filter verifier environment source "
)
_SAMPLING = "n temperature greedy max_tokens stop top_p top_k min_p"

_SHAPE: Mapping[str, str] = {
    "run": "model",
    "learner": "lora freeze_router",
}
# The value of a setting that names files is their content: a path alone may change.
_IDENTITY: Mapping[str, str] = {
    "run": "task seed groups_per_step",
    "rollout": "n temperature",
    "learner": "algorithm",
    "curriculum.evaluation": "problems",
    "curriculum.evaluation.sampling": _SAMPLING,
    "data": "held_out_share contamination duplicates max_prompt_tokens",
    "data.train": f"{_ROWS} weight repeats",
    "data.eval": f"{_ROWS} name problems",
    "data.eval.sampling": _SAMPLING,
    "environments.named": (
        "kind ask end error checks size moves form tool_seconds output_characters seconds idle_seconds memory_mb "
        "processes scratch_mb environment class_name settings source command"
    ),
    "reward.verifiers": (
        "kind thinking special_tokens answer decimals unevaluated max_answer_characters max_characters partial "
        "comparison tolerance prelude command languages file_name part ignore_case ignore_space pattern whole "
        "think_tag opened_by_prompt answer_tag free_characters length_penalty function threshold source model "
        "max_tokens truncation overlong_reward chat_template label verifier parts correct closed_reward"
    ),
}
_KNOBS: Mapping[str, str] = {
    "run": (
        "id folder model_revision steps max_staleness groups_in_flight weights_transfer weights_full_every "
        "gpu_hour_price evaluate_every trackers"
    ),
    "run.stop": "accuracy seconds tokens",
    "rollout": "max_tokens stop top_p top_k min_p min_tokens",
    "rollout.early_stop": "first error",
    # A start finds out by itself whether entries refer to what another store has.
    "payloads": "store folder url fsync outage_seconds sweep_seconds orphan_seconds",
    "redis": (
        "url username password_file sentinel_username sentinel_password_file authority certificate key durability "
        "durable_replicas timeout_seconds connect_seconds outage_seconds"
    ),
    "streams": (
        "max_bytes inline_bytes max_entry_bytes block_seconds idle_seconds max_deliveries consumer lease_seconds"
    ),
    "access": "certificate key authority mutual server_name tokens token",
    "traces": "endpoint share headers_file timeout_seconds max_waiting close_seconds",
    "tracking": "max_waiting close_seconds",
    "tracking.tensorboard": "folder",
    "tracking.wandb": "project entity mode folder tags start_seconds",
    "tracking.mlflow": "uri experiment tags",
    "tracking.trackio": "project folder space",
    "reward": (
        f"{_SERVER} processes memory_mb printed_kb timeout_seconds attempts groups_in_flight max_queued max_early"
    ),
    "reward.verifiers": (
        "timeout_seconds start_seconds environment judging_seconds seconds idle_seconds memory_mb processes scratch_mb "
        "output_kb folders isolation waiting file batch_size rows device dtype address token_file ca_file "
        "certificate_file key_file attempts attempt_seconds backoff_seconds in_flight"
    ),
    "environments.named": (
        "file variables start_seconds answer_seconds observation_tokens address token_file ca_file certificate_file "
        "key_file call_seconds attempts backoff_seconds waiting claim_seconds"
    ),
    "environments": (
        f"{_SERVER} generation_address groups_in_flight max_plays attempts weights_wait_seconds answer_seconds "
        "tool_calls turns observation_tokens turn_seconds episode_seconds"
    ),
    "environments.hosting": "max_episodes idle_seconds max_kb",
    "environments.gateway": (
        "enabled port model_name max_body_bytes max_requests max_connections receive_seconds request_seconds"
    ),
    "environments.gateway.records": "max_open max_ended max_mb seconds",
    "learner": (
        f"{_SERVER} advantage turn_advantages aggregation clip_low clip_high proximal routing_replay kl_coefficient "
        "entropy_coefficient overlong overlong_buffer_tokens epochs minibatches micro_batch_tokens head_chunk_bytes "
        "activation_checkpointing attn_implementation precision router_precision device threads"
    ),
    "learner.correction": "kind low high",
    "learner.router_shift": "enabled gamma_min layer_aggregation apply mismatch_baseline",
    "learner.optimizer": (
        "learning_rate warmup_steps schedule weight_decay beta1 beta2 moments offload update_bytes fused max_grad_norm "
        "max_skipped"
    ),
    "learner.parallel": "processes timeout_seconds",
    "learner.mesh": "replicate shard expert context",
    "learner.checkpoints": "every keep keep_best keep_seconds keep_weights background disk_seconds step_seconds",
    "reward.unscored": "groups max_bytes",
    "learner.samples": "groups dropped max_bytes",
    "learner.transfer": "host backend timeout_seconds",
    "learner.collapse": "window fraction pause",
    "generation": (
        f"{_SERVER} engine engine_settings max_model_len max_num_seqs max_waiting device threads router_export "
        "router_scores router_layers update_policy max_tokens kv_cache_high_water attempts early_scores early_seconds "
        "reward_address weights_wait_seconds weights_poll_seconds stall_seconds"
    ),
    "generation.vllm": (
        "dtype quantization kv_cache_bytes gpu_memory_utilization max_num_batched_tokens enable_prefix_caching "
        "enable_chunked_prefill enforce_eager moe_backend attention_backend model_runner tensor_parallel_size "
        "data_parallel_size enable_expert_parallel speculative_tokens answer_seconds"
    ),
    "curriculum": f"{_SERVER} generation_address environments_address reward_address poll_seconds",
    "curriculum.evaluation": "pass_at_k concurrency answer_seconds patience_seconds",
    "curriculum.selection": "strategy retry low high problems",
    "data": "max_bad_share",
    "data.eval": "pass_at_k every",
    "supervisor": (
        "liveness_seconds backoff_seconds max_backoff_seconds max_deaths deaths_seconds redis_start_seconds "
        "progress_seconds step_seconds drain_seconds"
    ),
}  # fmt: skip


def _by_name(*groups: tuple[Rule, Mapping[str, str]]) -> dict[str, Rule]:
    found: dict[str, Rule] = {}
    for rule, tables in groups:
        for table, keys in tables.items():
            for key in keys.split():
                if found.setdefault(f"{table}.{key}", rule) is not rule:
                    raise AssertionError(f"{table}.{key} stands in two groups of rules")
    return found


RULES: Mapping[str, Rule] = _by_name((Rule.SHAPE, _SHAPE), (Rule.IDENTITY, _IDENTITY), (Rule.KNOB, _KNOBS))


_NAMED = ("reward.verifiers", "environments.named")  # have tables that a recipe names


def rule_of(setting: str) -> Rule:
    """The rule of a setting.

    Args:
        setting: dotted. Numbers of tables in an array, names of verifiers and environments, and keys below a rule's own
            are as in a recipe: `data.train.0.columns.prompt`, `reward.verifiers.mine.file`.

    Returns:
        IDENTITY for a setting of a verifier or an environment that no rule names: a package may have brought it.

    Raises:
        KeyError: no rule; a new setting needs one.
    """
    parts = without_numbers(setting).split(".")
    if (named := ".".join(parts[:2])) in _NAMED:
        return RULES.get(f"{named}.{parts[3]}", Rule.IDENTITY) if len(parts) > 3 else Rule.IDENTITY
    for length in range(len(parts), 1, -1):
        if (rule := RULES.get(".".join(parts[:length]))) is not None:
            return rule
    raise KeyError(setting)


def has_rule(setting: str) -> bool:
    """Whether this version knows the setting."""
    try:
        rule_of(setting)
    except KeyError:
        return False
    return True


def without_numbers(setting: str) -> str:
    """The name of a setting without the numbers that count the tables of an array."""
    return ".".join(part for part in setting.split(".") if not part.isdecimal())


def settings_of(*tables: str) -> list[str]:
    """The settings of some components that make a run what it is, in the order of the table of rules."""
    return [name for name, rule in RULES.items() if rule is not Rule.KNOB and name.partition(".")[0] in tables]


def dotted(tables: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables by dotted key, those in a list by their number; any other list is a value."""
    found: dict[str, Any] = {}
    for key, value in tables.items():
        if isinstance(value, list) and value and all(isinstance(inner, Mapping) for inner in value):
            value = {str(number): inner for number, inner in enumerate(value)}
        if isinstance(value, Mapping) and value:
            found |= dotted(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The settings that differ, with the value before and now; None where there is none.

    Args:
        before, now: values by dotted name, fit for JSON.
    """
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if old != new:
            yield name, old, new
