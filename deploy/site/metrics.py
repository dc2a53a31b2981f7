"""The page of metrics, from the registry of Prometheus' client.

Run it in a process of its own: label values are those that the modules themselves begin at 0.
"""

import importlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import REGISTRY

from shared.settings import SERVICES

MODULES = (
    "shared.process.metrics",
    *(f"services.{service}.metrics" for service in SERVICES),
    "services.environments.gateway.metrics",
    "shared.streams.metrics",
    "shared.payloads.metrics",
    "shared.rpc.access",
    "shared.tracing.metrics",
    "shared.tracking.recording",
)
HEAD = """\
# Metrics

Every service answers `/metrics` on its `metrics_port` in the Prometheus text format. Units are base units. Labels have
the values named here and no others. Every series has `run` too, the id of the run that the service serves, and so have
those of Python and of the process. The generation service with the vLLM engine also shows vLLM's own metrics, which
begin with `vllm:`.
"""
# Parts of the page, and how names in them begin after routershift_.
_PARTS = {
    "Curriculum": ("curriculum_",),
    "Generation": ("generation_",),
    "Environments": ("environments_",),
    "Reward": ("reward_",),
    "Learner": ("learner_",),
    "Streams and Redis": ("stream_", "redis_", "ledger_"),
    "Payload store": ("payload_",),
    "Every service": ("",),
}
_STREAMS = {"stream": "prompts, episodes, rollouts, scored"}
# What labels are, where that does not follow from the code: values that are not begun at 0, and what else a value says.
VALUES = {
    "run_info": {"run": "id of the run"},
    "curriculum_choices_total": {"choice": "taken, solved, unsolved, too_easy, too_hard, priority"},
    "curriculum_held_out_accuracy": {"set": "held-out sets of the recipe", "decoding": "sampled, greedy"},
    "curriculum_evaluations_total": {"outcome": "ok, failed"},
    "stream_entries": _STREAMS,
    "stream_bytes": _STREAMS,
    "stream_oldest_entry_seconds": _STREAMS,
    "stream_redeliveries_total": _STREAMS,
    "calls_refused_total": {"reason": "unauthenticated, forbidden, overloaded, late, too_large"},
    "tracker_records_total": {"tracker": "its name", "outcome": "ok, failed, dropped"},
    "ledger_trajectories": {"state": "prompted, trained, dropped, dead, in_flight"},
    "generation_requests_total": {
        "method": "Generate, GenerateStream, UpdateWeights",
        "outcome": "ok, cancelled, internal, or a gRPC status",
    },
    "generation_trajectories_dropped_total": {"reason": "aborted"},
    "environments_episodes_total": {"end": "done, length (the turns or the tokens that it may have are used up)"},
    "environments_failures_total": {
        "reason": "environment_failed, environment_timed_out, agent_ended, episode_timed_out, aborted (by new weights)"
    },
    "environments_hosted_ends_total": {"reason": "closed (by the caller), idle, failed, drained (with the service)"},
    "environments_http_requests_total": {"status": "of HTTP, and 499 where the client went away"},
    "environments_agent_episodes_total": {
        "end": "rewarded, closed (by the agent), agent_ended (its process), timed_out, unclaimed, "
        "given_up (with others of the group)"
    },
    "environments_agent_turns_total": {
        "use": "trained, left_out (of branches that were left), failed (with the episode), late (after its end), "
        "recorded (of an episode that a caller opened for itself)"
    },
    "environments_own_ends_total": {"end": "rewarded, closed (by the agent), timed_out, given_up (with the service)"},
    "environments_records_removed_total": {"reason": "age, number, bytes (to make room)"},
    "generation_weights_deltas_refused_total": {
        "reason": "base (another version is here), notfound, corruptdata (it, or what was made with it)"
    },
    "reward_scores_total": {"outcome": "scored, failed, timed_out, refused"},
    "reward_trajectories_dropped_total": {"reason": "verifier_failed, verifier_timed_out, verifier_refused"},
    "reward_samples_total": {"outcome": "kept, refused (by the disk), no_room (`reward.unscored.max_bytes`)"},
    "learner_phase_seconds_total": {"phase": "wait, train, publish, checkpoint"},
    "learner_checkpoint_seconds_total": {"part": "wait, copy, write"},
    "learner_steps_skipped_total": {"reason": "non_finite"},
    "learner_samples_total": {
        "outcome": "kept, refused (by the disk), no_room (`learner.samples.max_bytes`), behind (the disk is too slow), "
        "failed"
    },
    "learner_transfers_total": {"outcome": "ok, failed"},
    "learner_state": {"state": "waiting, training, paused, finished"},
}
_PREFIX = "routershift_"


@dataclass(frozen=True, slots=True)
class Registered:
    """One metric, as its module made it."""

    name: str  # as Prometheus stores it
    kind: str
    meaning: str
    labels: Sequence[str]
    begun: Collection[tuple[str, ...]]  # label values that are there from the start


def page() -> str:
    """A table for each part, in the order in which metrics are registered."""
    for module in MODULES:
        importlib.import_module(module)
    left = {metric.name: metric for metric in _registered()}
    lines = [HEAD]
    for part, beginnings in _PARTS.items():
        found = [name for name in left if name.removeprefix(_PREFIX).startswith(beginnings)]
        lines += [f"## {part}\n", "| name | type | labels | meaning |", "|---|---|---|---|"]
        lines += [_row(left.pop(name)) for name in found]
        lines.append("")
    return "\n".join(lines)


def _registered() -> Iterator[Registered]:
    for collector in REGISTRY._collector_to_names:
        for family in collector.collect():
            if family.name.startswith(_PREFIX):
                name = f"{family.name}_total" if family.type == "counter" else family.name
                labels = getattr(collector, "_labelnames", ())
                begun = getattr(collector, "_metrics", ()) if labels else ()
                yield Registered(name, family.type, family.documentation, labels, begun)


def _row(metric: Registered) -> str:
    labels = "; ".join(_labels(metric))
    return f"| `{metric.name}` | {metric.kind} | {labels + ' ' if labels else ''}| {metric.meaning} |"


def _labels(metric: Registered) -> Iterator[str]:
    said = VALUES.get(metric.name.removeprefix(_PREFIX), {})
    if unknown := said.keys() - set(metric.labels):
        raise LookupError(f"{metric.name} has no label {', '.join(unknown)}; take it out of VALUES")
    for position, label in enumerate(metric.labels):
        begun = dict.fromkeys(values[position] for values in metric.begun)
        values = said.get(label, ", ".join(begun))
        if missing := [value for value in begun if value not in values]:
            raise LookupError(f"{metric.name} has a {label} {', '.join(missing)}, which VALUES does not name")
        yield f"`{label}`: {values}" if values else f"`{label}`"
