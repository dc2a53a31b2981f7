"""Settings of the learner: the table [learner]."""

from typing import Literal, Self

from pydantic import Field, model_validator

from shared.settings import BaseSettings, Door

Algorithm = Literal["rspo", "gmpo", "grpo"]
Application = Literal["before_clip", "after_clip"]
LayerAggregation = Literal["mean", "product"]


class LearnerSettings(Door):
    """What the learner does with a batch. How many batches of how many groups is in [run]."""

    port: int = Field(50053, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    metrics_port: int = Field(9103, ge=0, le=65535, description="Prometheus port; 0 takes a free one")

    algorithm: Algorithm = Field("rspo", description="the objective; rspo is gmpo with router shift")
    router_shift: bool | None = Field(
        None, description="multiply ratios by the router shift factor gamma; default: only in rspo"
    )
    gamma_min: float = Field(0.8, gt=0, le=1, description="floor of gamma")
    layer_aggregation: LayerAggregation = Field(
        "mean", description="gamma from the shift of the layers: mean of their logarithms, or product of their factors"
    )
    apply: Application = Field("before_clip", description="where gamma meets the ratio, before or after its clipping")
    clip_low: float | None = Field(
        None, gt=0, description="how far the ratio (grpo) or its logarithm (gmpo, rspo) may fall; default: 0.2 or 0.4"
    )
    clip_high: float | None = Field(None, gt=0, description="how far it may rise; default as for clip_low")

    learning_rate: float = Field(1e-6, gt=0, description="of AdamW, once warm")
    warmup_steps: int = Field(0, ge=0, description="batches over which the learning rate rises from 0, linearly")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW, decoupled")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of AdamW's first moment")
    adam_beta2: float = Field(0.95, ge=0, lt=1, description="decay of AdamW's second moment")
    max_grad_norm: float = Field(1.0, gt=0, description="norm at which the gradient is clipped")
    epochs: int = Field(1, ge=1, description="passes over a batch")
    minibatches: int = Field(1, ge=1, description="optimizer updates in a pass, each on a share of the groups")

    micro_batch_tokens: int = Field(16384, ge=1, description="padded tokens in one forward pass, at least one response")
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass")
    device: str = Field("cpu", description="torch device that trains, such as cpu or cuda")
    threads: int = Field(1, ge=1, description="CPU threads")

    checkpoint_every: int = Field(10, ge=1, description="batches between checkpoints")
    checkpoints_kept: int = Field(2, ge=1, description="checkpoints on disk; 2 survive the loss of one")
    weights_kept: int = Field(4, ge=1, description="published versions on disk")

    @property
    def uses_router_shift(self) -> bool:
        return self.algorithm == "rspo" if self.router_shift is None else self.router_shift

    @property
    def clip_range(self) -> tuple[float, float]:
        """(low, high): 0.2 both in GRPO (arXiv 2402.03300), 0.4 both in GMPO (arXiv 2507.20673)."""
        default = 0.2 if self.algorithm == "grpo" else 0.4
        return self.clip_low or default, self.clip_high or default

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        if self.algorithm == "rspo" and self.router_shift is False:
            raise ValueError("router_shift cannot be false with algorithm rspo; use gmpo, which is rspo without it")
        if self.algorithm == "grpo" and self.clip_range[0] >= 1:
            raise ValueError(f"clip_low is {self.clip_low}; in grpo it must be below 1, as a ratio is positive")
        return self


class Settings(BaseSettings):
    learner: LearnerSettings = LearnerSettings()
