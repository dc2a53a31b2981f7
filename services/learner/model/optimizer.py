"""AdamW and its learning rate over a run."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from services.learner.distributed.fsdp import by_mesh
from services.learner.model.settings import OptimizerSettings

_MOMENTS = ("exp_avg", "exp_avg_sq")


class NarrowAdamW(torch.optim.AdamW):
    """AdamW that holds its moments in bfloat16, and computes with them in float32, one parameter at a time.

    Each moment is rounded to nearest after each update, by at most 2^-9 of its value. With beta1 = 0.9 and beta2 = 0.95
    the roundings of all updates add up to about 0.26 % and 0.36 % of the moments (root mean square, computed); a beta
    so near to 1 that rounding takes back what an update changes is refused by the settings.
    """

    moments_dtype = torch.bfloat16

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's may call a closure
        """One update."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    device = parameter.device if group["fused"] else "cpu"
                    state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                    state |= {name: torch.zeros_like(parameter, dtype=self.moments_dtype) for name in _MOMENTS}
                first, second = (state[name].float() for name in _MOMENTS)
                adamw(
                    [parameter],
                    [parameter.grad],
                    [first],
                    [second],
                    [],
                    [state["step"]],
                    foreach=False,
                    fused=group["fused"],
                    amsgrad=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )
                state["exp_avg"].copy_(first)
                state["exp_avg_sq"].copy_(second)


def make_optimizer(parameters: Iterable[Tensor], settings: OptimizerSettings) -> torch.optim.AdamW:
    """AdamW over parameters that are on their device, and sharded where they are to be."""
    kind = NarrowAdamW if settings.moments == "bfloat16" else torch.optim.AdamW
    return kind(
        [{"params": one} for one in by_mesh(parameters)],
        lr=settings.learning_rate,
        betas=(settings.beta1, settings.beta2),
        weight_decay=settings.weight_decay,
        fused=settings.fused,
    )


def restore(optimizer: torch.optim.Optimizer, states: Mapping[Tensor, dict[str, Tensor]]) -> None:
    """Gives an optimizer its state, by parameter; what it had before is gone.

    Args:
        states: moments in the dtype that `moments_dtype` says, on the device of their parameter.
    """
    optimizer.state.clear()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter in states:
                state = states[parameter]
                if group.get("fused"):
                    state = {**state, "step": state["step"].to(parameter.device)}
                optimizer.state[parameter] = state


def moments_dtype(optimizer: torch.optim.Optimizer) -> torch.dtype:
    """What an optimizer holds its moments in."""
    return optimizer.moments_dtype if isinstance(optimizer, NarrowAdamW) else torch.float32


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
