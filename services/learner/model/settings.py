"""Settings of the optimizer of a learner: the table [learner.optimizer]."""

from importlib.util import find_spec
from typing import Literal, Self

from pydantic import Field, model_validator

from shared.errors import MissingDependencyError, PreconditionError
from shared.table import Table

Schedule = Literal["constant", "linear", "cosine"]

# Below it an update changes a moment by more than twice what bfloat16 can tell apart, 2^-8 of its value.
_LARGEST_NARROW_BETA = 0.99

BLOCK = 256  # moments in bytes that share a scale: torchao's number
SLOTS = 3  # slices on the device with offload: one comes, one is computed with, one goes
_MOMENT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "uint8": 1 + 4 / BLOCK}
_UNFUSED = 8  # bytes a value that torch's AdamW makes where it is not fused
_ROUNDING = {"float32": 0, "bfloat16": 8, "uint8": 48}  # bytes a value that reading and writing moments makes


class OptimizerSettings(Table):
    """AdamW, its learning-rate schedule and what protects it from bad gradients."""

    learning_rate: float = Field(1e-6, gt=0, description="learning rate after warm-up")
    warmup_steps: int = Field(0, ge=0, description="batches over which the learning rate rises linearly")
    schedule: Schedule = Field("constant", description="how the learning rate falls to 0 by the end of the run")
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay rate of AdamW's first moment")
    beta2: float = Field(0.95, ge=0, lt=1, description="decay rate of AdamW's second moment")
    moments: Literal["float32", "bfloat16", "uint8"] = Field(
        "float32",
        description="dtype in which AdamW's moments are held; bfloat16 halves them, and rounds each by up to 0.2 % at "
        "each update; uint8 takes a quarter, with a scale for each 256 values, by the package torchao",
    )
    offload: Literal["none", "moments", "masters"] = Field(
        "none",
        description="what is held in host memory, and comes to the device for the update: moments; masters: the "
        "float32 weights too, and the device holds them in the dtype of the model folder, bfloat16",
    )
    update_bytes: int = Field(
        256 << 20,
        ge=1 << 20,
        description="bytes of the device that an update takes for itself: what is on its way from and to host memory, "
        "and what it computes of it",
    )
    fused: bool = Field(False, description="use the fused AdamW kernel")
    max_grad_norm: float = Field(1.0, gt=0, description="L2 norm to which the gradient is clipped")
    max_skipped: int = Field(
        3, ge=1, description="batches in a row with a loss or gradient that is not finite before the learner gives up"
    )

    def check(self, dtype: str) -> None:
        """Refuses what cannot be done on this machine, or with a model whose folder is in this dtype.

        Raises:
            MissingDependencyError: moments are to be in bytes, and torchao is not installed.
            PreconditionError: bfloat16 would round the weights, whose masters are to be in host memory.
        """
        if self.moments == "uint8" and find_spec("torchao") is None:
            raise MissingDependencyError(
                "learner.optimizer.moments is 'uint8', and torchao is not installed; "
                "pip install 'routershift[torchao]', or set it to bfloat16",
                name="torchao",
            )
        if self.offload == "masters" and dtype != "bfloat16":
            raise PreconditionError(
                f"learner.optimizer.offload is 'masters' and run.model is in {dtype}, which bfloat16 would round; take "
                "a folder in bfloat16, or set learner.optimizer.offload moments"
            )

    @property
    def moment_bytes(self) -> float:
        """Bytes of both moments of a value; of small parameters they are in float32 where others are in bytes."""
        return 2 * _MOMENT_BYTES[self.moments]

    @property
    def brought_bytes(self) -> int:
        """Bytes of a value that come to the device for an update and go back, at most."""
        if self.offload == "none":
            return 0
        return 2 * (2 if self.moments == "bfloat16" else 4) + (4 if self.offload == "masters" else 0)

    @property
    def update_value_bytes(self) -> int:
        """Bytes of the device that an update takes for each value of a slice."""
        return SLOTS * self.brought_bytes + _ROUNDING[self.moments] + (0 if self.fused else _UNFUSED)

    @model_validator(mode="after")
    def _moments_move(self) -> Self:
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if self.moments != "float32" and beta > _LARGEST_NARROW_BETA:
                raise ValueError(
                    f"{name} is {beta:g} and moments {self.moments}: rounding takes back much of each change; lower "
                    f"{name} to {_LARGEST_NARROW_BETA:g}, or take moments float32"
                )
        return self
