"""What a rollout must be to be trained on: every fault is found here, before it reaches the model."""

from dataclasses import dataclass

import numpy as np

from routershift.routing.layout import RouterLayout
from routershift.routing.routers import check_layout
from routershift.routing.trace_check import check_trace
from routershift.trajectory import Completion, check_segments
from services.learner.data.batch import Group, Sample
from shared.errors import CorruptDataError, InvalidInputError


@dataclass(frozen=True, slots=True)
class Limits:
    """What the model can take. `layout` is None where no router trace is wanted."""

    vocabulary: int
    max_tokens: int  # prompt and response together, given tokens too
    layout: RouterLayout | None
    needs_exact_scores: str | None = None  # the setting that router scores must be float16 for
    needs_all_layers: str | None = None  # the setting that router traces must have all layers for


def check_versions(group: Group, published: int) -> None:
    """Raises CorruptDataError where a token was sampled by a version that was never published.

    Args:
        published: the highest version that the learner has ever published in this run.
    """
    for i, sample in enumerate(group.samples):
        for span in sample.completion.versions:
            if not 0 <= span.version <= published:
                raise CorruptDataError(
                    f"group {group.group_id}, sample {i}: tokens of version {span.version}; the learner has published "
                    f"versions 0 to {published}"
                )


def check_group(group: Group, limits: Limits) -> None:
    """Raises InvalidInputError or CorruptDataError, naming the sample, where a group cannot be trained on."""
    for i, sample in enumerate(group.samples):
        try:
            _check_sample(sample, limits)
        except (InvalidInputError, CorruptDataError) as error:
            raise type(error)(f"group {group.group_id}, sample {i}: {error}") from None


def _check_sample(sample: Sample, limits: Limits) -> None:
    completion = sample.completion
    tokens = completion.token_ids.size
    lengths = {"logprobs": completion.logprobs.size, "versions": sum(span.tokens for span in completion.versions)}
    if tokens == 0 or sample.prompt_ids.size == 0:
        raise InvalidInputError("prompt_ids or token_ids is empty; both need at least one token")
    if wrong := {name: length for name, length in lengths.items() if length != tokens}:
        raise CorruptDataError(f"{wrong} entries for {tokens} tokens; expected one for each")
    trajectory = sample.trajectory
    check_segments(trajectory.segments, tokens, trajectory.given_ids.size)
    if (whole := sample.input_tokens + 1) > limits.max_tokens:
        raise InvalidInputError(f"prompt and response have {whole} tokens; the model takes {limits.max_tokens}")
    fields = {
        "prompt_ids": sample.prompt_ids,
        "token_ids": completion.token_ids,
        "given_token_ids": trajectory.given_ids,
    }
    for field, ids in fields.items():
        if ids.size and (ids.min() < 0 or ids.max() >= limits.vocabulary):
            raise InvalidInputError(
                f"{field} spans {ids.min()} to {ids.max()}; the model has tokens 0 to {limits.vocabulary - 1}"
            )
    if not (np.isfinite(completion.logprobs).all() and np.isfinite(sample.reward)):
        raise CorruptDataError("logprobs or reward is not finite; the rollout cannot be weighed")
    if limits.layout is not None:
        _check_trace(completion, limits.layout, limits)


def _check_trace(completion: Completion, layout: RouterLayout, limits: Limits) -> None:
    trace = completion.router_trace
    if trace is None:
        raise InvalidInputError("router_trace is absent; this algorithm needs it, generation must record routes")
    check_layout(trace.layout, layout)
    if trace.is_coded and limits.needs_exact_scores:
        raise InvalidInputError(
            f"router_trace.log_scores is uint8; learner.{limits.needs_exact_scores} needs float16: set "
            "generation.router_scores"
        )
    layers = len(layout.layer_ids) if trace.layers is None else trace.layers.shape[1]
    if trace.layers is not None and limits.needs_all_layers:
        raise InvalidInputError(
            f"router_trace has {layers} of {len(layout.layer_ids)} layers; learner.{limits.needs_all_layers} needs "
            "all: take generation.router_layers out"
        )
    shape = (completion.token_ids.size, layers, layout.top_k)
    if trace.log_scores is None:
        raise InvalidInputError("router_trace.log_scores is absent; set generation.router_export to topk")
    if trace.expert_ids.shape != shape or trace.log_scores.shape != shape:
        raise CorruptDataError(
            f"router_trace has shapes {trace.expert_ids.shape} and {trace.log_scores.shape}; expected {shape}"
        )
    check_trace(trace)
