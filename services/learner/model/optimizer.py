"""AdamW and its learning rate over a run.

An update goes through parameters in slices, so what it takes of the device for itself is bounded by a setting. That is
temporary tensors, moments that are widened, and what is on its way between host memory and the device. Each value is
computed alone, so slices change nothing: on a CPU the bits are those of torch's AdamW.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._dtensor_spec import DTensorSpec, TensorMeta
from torch.optim.adamw import adamw

from services.learner.distributed.fsdp import by_mesh
from services.learner.model import moments
from services.learner.model.moments import MOMENTS, Form
from services.learner.model.pipeline import Pipeline, pin
from services.learner.model.settings import BLOCK, OptimizerSettings

STEP = "step"  # the name of the number of updates in the state of a parameter
_MASTER = "master"


class AdamW(torch.optim.Optimizer):
    """AdamW with moments in any form and place that the settings name, one slice of a parameter at a time.

    Attributes:
        masters: float32 weights in host memory, by the parameter that is their rounded copy; empty where the
            parameters are the weights.
    """

    masters: dict[Tensor, Tensor]

    def __init__(self, parameters: Iterable[Tensor], settings: OptimizerSettings) -> None:
        """Args: parameters: on their device, and sharded where they are to be."""
        super().__init__(
            [{"params": one} for one in by_mesh(parameters)],
            {
                "lr": settings.learning_rate,
                "betas": (settings.beta1, settings.beta2),
                "eps": 1e-8,
                "weight_decay": settings.weight_decay,
                "fused": settings.fused,
            },
        )
        self._form: Form = settings.moments
        self._offloads = settings.offload != "none"
        self._brought_bytes = settings.brought_bytes
        self._slice = BLOCK * max(1, settings.update_bytes // (max(1, settings.update_value_bytes) * BLOCK))  # values
        self.masters = {}
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if not isinstance(parameter, DTensor):
                parameter.data = parameter.data.contiguous()  # slices are views of it
            if parameter.dtype != torch.float32:
                self.masters[parameter] = master = self._held(parameter, parameter.shape, torch.float32)
                _local(master).copy_(_local(parameter))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's may call a closure
        """One update."""
        for group in self.param_groups:
            updated = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not updated:
                continue
            with self._pipeline(updated) as pipeline:
                for parameter in updated:
                    if not self.state[parameter]:
                        self.state[parameter] = self.empty_state(parameter, self.layout_of(parameter))
                    self._update(parameter, group, pipeline)

    def layout_of(self, parameter: Tensor) -> moments.Layout:
        """How its moments are held."""
        return moments.layout(parameter.shape, self._form)

    def empty_state(self, parameter: Tensor, layout: moments.Layout) -> dict[str, Tensor]:
        """State before the first update, with moments in any layout, where they are to be and divided as it is."""
        stays = layout == self.layout_of(parameter)
        held = {name: self._held(parameter, *each, pins=stays) for name, each in layout.items()}
        return {STEP: torch.zeros((), dtype=torch.float32)} | held

    @torch.no_grad()
    def adopt(self, states: Mapping[Tensor, dict[str, Tensor]]) -> None:
        """Takes the state of parameters in place of its own, and rounds the parameters from their masters.

        Args:
            states: as `empty_state` makes them; what is in another layout is converted.
        """
        self.state.clear()
        for parameter, found in states.items():
            layout = self.layout_of(parameter)
            if layout != {name: (t.shape, t.dtype) for name, t in found.items() if name != STEP}:
                own = self.empty_state(parameter, layout)
                own[STEP].copy_(found[STEP])
                for here, there in zip(self._slices(own), self._slices(found), strict=True):
                    for name in MOMENTS:
                        moments.write(here, name, moments.read(there, name))
                found = own
            self.state[parameter] = found
        for parameter, master in self.masters.items():
            _local(parameter).copy_(_local(master))

    def weights(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The float32 weights of parameters, by name: themselves, or their masters."""
        return {name: self.masters.get(each, each).detach() for name, each in parameters.items()}

    def _update(self, parameter: Any, group: Mapping[str, Any], pipeline: Pipeline | None) -> None:
        state, held = self.state[parameter], dict(self.state[parameter])
        if (master := self.masters.get(parameter)) is not None:
            held[_MASTER] = master
        live = {"weight": parameter, "gradient": parameter.grad.contiguous()}
        for own, slices in zip(self._slices(live), self._slices(held), strict=True):
            with nullcontext(slices) if pipeline is None else pipeline.brought(slices) as here:
                weight = here.get(_MASTER, own["weight"])
                _compute(weight, own["gradient"], here, float(state[STEP]), group)
                if _MASTER in here:
                    own["weight"].copy_(weight)
        state[STEP] += 1

    def _slices(self, tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
        """Flat views of what this rank has of tensors that belong together, a slice at a time; scales by blocks."""
        flat = {name: _local(tensor).view(-1) for name, tensor in tensors.items() if name != STEP}
        length, size = max(map(len, flat.values())), self._slice
        for begin in range(0, length, size):
            yield {
                name: tensor[begin : begin + size] if len(tensor) == length
                else tensor[begin // BLOCK : (begin + size) // BLOCK]
                for name, tensor in flat.items()
            }  # fmt: skip

    def _pipeline(self, parameters: list[Tensor]) -> AbstractContextManager[Pipeline | None]:
        if not self._offloads:
            return nullcontext()
        values = min(self._slice, max(_local(parameter).numel() for parameter in parameters))
        return Pipeline(_local(parameters[0]).device, values * self._brought_bytes)

    def _held(self, parameter: Tensor, shape: torch.Size, dtype: torch.dtype, pins: bool = True) -> Tensor:
        """Zeros of a shape whose first dimension is that of the parameter, divided over the ranks as it is.

        Args:
            pins: those in host memory, which have to stay until the process ends.
        """
        local = _local(parameter)
        own = torch.Size((*local.shape[:1], *shape[1:]))
        zeros = torch.zeros(own, dtype=dtype, device="cpu" if self._offloads else local.device)
        if self._offloads and pins:
            pin(zeros, local.device)
        if not isinstance(parameter, DTensor):
            return zeros
        stride = torch.empty(shape, device="meta").stride()
        spec = DTensorSpec(parameter.device_mesh, parameter.placements, tensor_meta=TensorMeta(shape, stride, dtype))
        # Not by from_local, which moves what it is given to the device of the mesh.
        return DTensor(zeros, spec, requires_grad=False)  # type: ignore[no-untyped-call]  # torch gives it no types


def _compute(
    weight: Tensor, gradient: Tensor, held: Mapping[str, Tensor], step: float, group: Mapping[str, Any]
) -> None:
    """The update after `step` updates, in place; flat tensors of one slice."""
    first, second = (moments.read(held, name) for name in MOMENTS)
    adamw(
        [weight],
        [gradient],
        [first],
        [second],
        [],
        [torch.full((), step, device=weight.device if group["fused"] else "cpu")],
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
    for name, moment in zip(MOMENTS, (first, second), strict=True):
        moments.write(held, name, moment)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


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
