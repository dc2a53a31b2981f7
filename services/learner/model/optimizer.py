"""AdamW and its learning rate over a run."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from services.learner.distributed.fsdp import by_mesh
from services.learner.settings import OptimizerSettings


def make_optimizer(parameters: Iterable[Tensor], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over parameters that are on their device, and sharded where they are to be."""
    return torch.optim.AdamW(
        [{"params": one} for one in by_mesh(parameters)],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=settings.fused,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: OptimizerSettings, step: int, steps: int) -> None:
    """Sets the rate of the batch after `step` batches of a run of `steps`.

    It follows from the settings and the step alone, so that a run which goes on with other settings has their rate.
    """
    for group in optimizer.param_groups:
        group["lr"] = settings.learning_rate * factor(step, settings, steps)


def factor(step: int, settings: OptimizerSettings, steps: int) -> float:
    """What the learning rate is multiplied by in the batch after `step` batches of a run of `steps`.

    A linear rise over `warmup_steps` batches, of which none has the rate 0, then `schedule` down to 0 after the last.
    """
    if step < settings.warmup_steps:
        return (step + 1) / (settings.warmup_steps + 1)
    done = min(1.0, (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps))
    match settings.schedule:
        case "linear":
            return 1 - done
        case "cosine":
            return 0.5 * (1 + math.cos(math.pi * done))
        case _:
            return 1.0
