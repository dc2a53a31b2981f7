"""Settings of the optimizer of a learner: the table [learner.optimizer]."""

from typing import Literal, Self

from pydantic import Field, model_validator

from shared.table import Table

Schedule = Literal["constant", "linear", "cosine"]

# Below it an update changes a moment by more than twice what bfloat16 can tell apart, 2^-8 of its value.
_LARGEST_NARROW_BETA = 0.99


class OptimizerSettings(Table):
    """AdamW, its learning-rate schedule and what protects it from bad gradients."""

    learning_rate: float = Field(1e-6, gt=0, description="learning rate after warm-up")
    warmup_steps: int = Field(0, ge=0, description="batches over which the learning rate rises linearly")
    schedule: Schedule = Field("constant", description="how the learning rate falls to 0 by the end of the run")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay rate of AdamW's first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay rate of AdamW's second moment")
    moments: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="dtype in which AdamW's moments are held; bfloat16 halves them, and rounds each by up to 0.2 % at "
        "each update",
    )
    fused: bool = Field(False, description="use the fused AdamW kernel")
    max_grad_norm: float = Field(1.0, gt=0, description="L2 norm to which the gradient is clipped")
    max_skipped: int = Field(
        3, ge=1, description="batches in a row with a loss or gradient that is not finite before the learner gives up"
    )

    @model_validator(mode="after")
    def _moments_move(self) -> Self:
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if self.moments == "bfloat16" and beta > _LARGEST_NARROW_BETA:
                raise ValueError(
                    f"{name} is {beta:g} and moments bfloat16: rounding takes back much of each change; lower {name} "
                    f"to {_LARGEST_NARROW_BETA:g}, or take moments float32"
                )
        return self
