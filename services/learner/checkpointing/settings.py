"""Settings of what a learner keeps and hands on: the tables [learner.checkpoints] and [learner.transfer]."""

from typing import Literal

from pydantic import Field

from shared.streams.progress import MOST_ACCURACIES
from shared.table import Table


class CheckpointSettings(Table):
    """Checkpoints and published weights on disk."""

    every: int = Field(10, ge=1, description="batches between checkpoints")
    keep: int = Field(2, ge=1, description="newest checkpoints kept; with 2 a run survives the loss of one")
    keep_best: int = Field(
        1,
        ge=1,
        le=MOST_ACCURACIES,
        description="versions of the highest held-out accuracy whose checkpoint and weights are kept beside the newest",
    )
    keep_seconds: float = Field(
        0.0, ge=0, description="age up to which a checkpoint is kept beside the newest, in seconds; 0: by number alone"
    )
    keep_weights: int = Field(4, ge=1, description="newest published versions of the weights kept")
    background: bool = Field(
        True,
        description="copy the state to host memory, and write it while training goes on; false: training waits, and "
        "nothing is copied",
    )
    disk_seconds: float = Field(
        120.0, ge=0, description="how long a failing write is retried before the learner ends, in seconds"
    )
    step_seconds: float = Field(
        7200.0, ge=0, description="how long a checkpoint that a caller asks for waits for the step in progress"
    )


class TransferSettings(Table):
    """How weights travel to generation where run.weights_transfer is broadcast."""

    host: str = Field("127.0.0.1", description="address under which generation reaches this machine")
    backend: Literal["gloo", "nccl"] = Field(
        "gloo", description="nccl: between GPUs, where the learner and each generation worker have one of their own"
    )
    timeout_seconds: float = Field(
        60.0, gt=0, description="time for all replicas to connect, and then for each part of the transfer"
    )
