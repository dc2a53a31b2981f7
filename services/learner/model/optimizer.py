"""The learning rate over a run."""

import math

from services.learner.settings import OptimizerSettings


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
