"""Settings of the learner: the table [learner]."""

from typing import Literal, Self

from pydantic import Field, model_validator

from services.learner.algorithms.presets import (
    ALGORITHMS,
    AdvantageKind,
    Aggregation,
    Algorithm,
    Application,
    CorrectionKind,
    Preset,
    Proximal,
    refusals,
)
from shared.settings import BaseSettings, ServerSettings, Table

LayerAggregation = Literal["mean", "product"]
Replay = Literal["none", "r2", "r3"]
MismatchBaseline = Literal["none", "subtract"]
Schedule = Literal["constant", "linear", "cosine"]


class LoraSettings(Table):
    """Low-rank adapters, trained in place of the weights and merged into them where they are published."""

    rank: int = Field(0, ge=0, description="rank of the adapters, best a multiple of 8; 0: train the weights")
    alpha: float = Field(16.0, gt=0, description="scale of the adapters, divided by the rank")
    targets: Literal["attention", "experts", "all"] = Field(
        "all", description="what gets adapters: attention, experts (every feed-forward weight) or all; routers never do"
    )


class LearnerSettings(ServerSettings):
    """What the learner does with a batch. How many batches of how many groups is in [run]."""

    port: int = Field(50053, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    metrics_port: int = Field(9103, ge=0, le=65535, description="Prometheus port; 0 takes a free one")

    algorithm: Algorithm = Field(
        "rspo", description="a named choice of all that stands under it; rspo is gmpo with router shift"
    )
    advantage: AdvantageKind | None = Field(None, description="how rewards become advantages; default: the algorithm's")
    aggregation: Aggregation | None = Field(None, description="what a token weighs; default: the algorithm's")
    clip_low: float | None = Field(
        None, gt=0, description="how far the ratio, or its logarithm (gmpo, rspo), may fall; default: the algorithm's"
    )
    clip_high: float | None = Field(None, gt=0, description="how far it may rise; default: the algorithm's")

    router_shift: bool | None = Field(
        None, description="multiply ratios by the router shift factor gamma; default: only in rspo"
    )
    gamma_min: float = Field(0.8, gt=0, le=1, description="floor of gamma")
    layer_aggregation: LayerAggregation = Field(
        "mean", description="gamma from the shift of the layers: mean of their logarithms, or product of their factors"
    )
    apply: Application = Field("before_clip", description="where gamma meets the ratio, before or after its clipping")
    mismatch_baseline: MismatchBaseline = Field(
        "none", description="subtract: what two engines disagree on without any lag is no shift of the router"
    )
    routing_replay: Replay = Field(
        "none", description="experts of the training forward: live, r2 (as before the update), r3 (as the sampler's)"
    )

    proximal: Proximal = Field(
        "behaviour", description="denominator of the ratio; recompute: the learner's own, before the first update"
    )
    correction: CorrectionKind = Field(
        "none", description="of the ratio to the behaviour policy: truncate (TIS), mask (IcePop), sequence_mask"
    )
    correction_low: float = Field(0.5, gt=0, lt=1, description="ratio below which a mask drops a token or response")
    correction_high: float | None = Field(
        None, gt=1, description="ratio above which it is truncated or dropped; default: 2 for truncate, 5 for masks"
    )
    kl_coefficient: float = Field(0.0, ge=0, description="weight of the KL divergence from the model of the start")
    entropy_coefficient: float = Field(0.0, ge=0, description="weight of the entropy bonus")
    overlong_buffer_tokens: int = Field(
        0, ge=0, description="tokens before run.max_tokens over which the reward falls by up to 1; 0: never"
    )

    learning_rate: float = Field(1e-6, gt=0, description="of AdamW, once warm")
    warmup_steps: int = Field(0, ge=0, description="batches over which the learning rate rises from 0, linearly")
    schedule: Schedule = Field("constant", description="how the learning rate falls to 0 by the end of the run")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW, decoupled")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of AdamW's first moment")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="decay of AdamW's second moment")
    fused_adam: bool = Field(False, description="AdamW as one kernel")
    max_grad_norm: float = Field(1.0, gt=0, description="norm at which the gradient is clipped")
    epochs: int = Field(1, ge=1, description="passes over a batch")
    minibatches: int = Field(1, ge=1, description="optimizer updates in a pass, each on a share of the groups")
    lora: LoraSettings = LoraSettings()

    micro_batch_tokens: int = Field(16384, ge=1, description="tokens in one forward pass, at least one response")
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the forward and backward pass; weights, gradients and AdamW are float32"
    )
    device: str = Field("cpu", description="torch device that trains, such as cpu or cuda")
    threads: int = Field(1, ge=1, description="CPU threads")
    processes: int = Field(
        1, ge=1, description="ranks on this machine, which the learner starts itself; not under torchrun, which does"
    )

    checkpoint_every: int = Field(10, ge=1, description="batches between checkpoints")
    checkpoints_kept: int = Field(2, ge=1, description="checkpoints on disk; 2 survive the loss of one")
    weights_kept: int = Field(4, ge=1, description="published versions on disk")
    disk_seconds: float = Field(
        120.0, ge=0, description="how long a write that the disk refuses is tried again before the learner ends"
    )

    transfer_host: str = Field(
        "127.0.0.1", description="address of this machine for generation, where run.weights_transfer is broadcast"
    )
    transfer_backend: Literal["gloo", "nccl"] = Field(
        "gloo", description="nccl: between GPUs, where the learner and each worker of generation have one of their own"
    )
    transfer_seconds: float = Field(
        60.0, gt=0, description="for all replicas to come to a transfer, and then for each of its parts"
    )

    max_skipped: int = Field(3, ge=1, description="batches in a row that may be skipped before the learner gives up")
    collapse_window: int = Field(
        0, ge=0, description="batches of the running mean of the reward that is watched for a collapse; 0: not watched"
    )
    collapse_fraction: float = Field(
        0.5, gt=0, lt=1, description="share of its best value that the running mean may lose"
    )
    pause_on_collapse: bool = Field(False, description="stop training then, until a person resumes it")

    @property
    def preset(self) -> Preset:
        return ALGORITHMS[self.algorithm]

    @property
    def uses_router_shift(self) -> bool:
        return self.preset.router_shift if self.router_shift is None else self.router_shift

    @property
    def uses_traces(self) -> bool:
        """Whether rollouts must bring what their routers did."""
        return self.uses_router_shift or self.routing_replay == "r3"

    @property
    def clip_range(self) -> tuple[float, float]:
        """(low, high)"""
        return self.clip_low or self.preset.clip_low, self.clip_high or self.preset.clip_high

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        found = refusals(
            self.algorithm,
            clip_low=self.clip_low,
            clip_high=self.clip_high,
            router_shift=self.router_shift,
            proximal=self.proximal,
            correction=self.correction,
            replays_own_routes=self.routing_replay == "r2",
        )
        if self.mismatch_baseline == "subtract" and not self.uses_router_shift:
            found.append(
                "mismatch_baseline corrects the router shift factor; use router_shift or mismatch_baseline none"
            )
        if found:
            raise ValueError("; ".join(found))
        return self


class Settings(BaseSettings):
    learner: LearnerSettings = LearnerSettings()

    @model_validator(mode="after")
    def _penalty_can_be_avoided(self) -> Self:
        buffer, longest = self.learner.overlong_buffer_tokens, self.run.max_tokens
        if buffer > longest:
            raise ValueError(
                f"learner.overlong_buffer_tokens is {buffer}; it must be at most run.max_tokens, which is {longest}"
            )
        return self
