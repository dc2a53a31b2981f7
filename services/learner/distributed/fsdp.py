"""FSDP2: the parameters, gradients and optimizer state of a model, divided over the ranks of a mesh.

Each decoder layer is gathered when it computes and dropped afterwards. Experts are stacked along the first dimension
of one parameter, so a rank holds whole experts of every layer.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from routershift.routing.routers import decoder_layers, routers_of
from services.learner.distributed import expert_parallel
from services.learner.distributed.ranks import Ranks
from shared.errors import CorruptDataError
from shared.process.allocator import return_freed_memory

Source = Callable[[int | None, Mapping[str, Tensor]], AbstractContextManager[Mapping[str, Tensor]]]
"""Called with the index of a decoder layer, or None for what is in none, and the tensors of the model by name: gives
what this rank is to hold of that layer's tensors, by name, on any device. Names of others may be among them."""


def shard(
    model: PreTrainedModel,
    ranks: Ranks,
    dtype: torch.dtype = torch.float32,
    router_dtype: torch.dtype | None = None,
    source: Source | None = None,
) -> None:
    """Divides the model over the ranks, in place, on their devices, one decoder layer at a time.

    Parameters and buffers have the same values on all ranks, or are on the meta device: then nobody ever has more of
    the model in memory than its part, and one layer. Names, and the order of `named_parameters`, stay; parameters
    become DTensors, so an optimizer is to be made afterwards.

    Gradients are summed over the ranks, in float32: the loss of a rank is to be its share of the whole loss.
    Each rank has to run the same number of forward and backward passes.

    One process in float32 has nothing to divide: its model is only moved to the device.

    Args:
        model: float32 parameters, of any device; these stay the optimizer's master weights.
        dtype: of forward and backward, bfloat16 or float32.
        router_dtype: of the routers, float32 or float64; None: the same. They compute with the master weights, not with
            rounded ones, and give what follows them `dtype`. Hooks of before see what they computed.
        source: of the values of tensors on the meta device.

    Raises:
        CorruptDataError: the source has no values for some of them.
    """
    if ranks.size == 1 and dtype == torch.float32 and router_dtype is None:
        model.to(ranks.device)
        return
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    own = MixedPrecisionPolicy(param_dtype=router_dtype, reduce_dtype=torch.float32, output_dtype=dtype)
    routers = {} if router_dtype is None else routers_of(model)
    # Experts take what their layer hands them: combine weights may be float32 there.
    inner = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = ranks.mesh
    for index, layer in enumerate(decoder_layers(model)):
        _move(layer, ranks.device)
        if index in routers:  # inner modules have to come first
            _shard(routers[index], mesh.dense, own)
        if mesh.expert is not None:
            for experts in expert_parallel.divide(layer, model, mesh.expert):
                _shard(experts, mesh.experts, inner)
        _shard(layer, mesh.dense, policy)
        return_freed_memory()  # else the whole layers that were freed stay with the process, and so the whole model
    _move(model, ranks.device)
    _shard(model, mesh.dense, policy)
    if source is not None:
        _fill(model, ranks.device, source)


def _shard(module: nn.Module, mesh: DeviceMesh, policy: MixedPrecisionPolicy) -> None:
    """What is not yet divided below the module."""
    # Also the root is dropped after its forward pass: a copy of it would hide weights that are loaded later.
    sharded: Any = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)  # gloo sums, and knows no scaled sum


def sum_gradients_in_float32(model: PreTrainedModel) -> None:
    """Gradients of parameters in bfloat16 are held in float32, as those of float32 parameters are.

    FSDP2 of torch 2.13 sums them over ranks in `reduce_dtype`, and then rounds the sum to the dtype of the parameter,
    once for each pass. It has no setting for that.
    """
    root: Any = model
    root._get_fsdp_state()._lazy_init()  # reads the dtypes of parameters, now and not again
    for module in model.modules():
        if isinstance(module, FSDPModule):
            state: Any = module._get_fsdp_state()
            for group in state._fsdp_param_groups:
                group._orig_dtype = torch.float32
    for parameter in (p for p in model.parameters() if p.requires_grad):
        parameter.grad_dtype = torch.float32


def by_mesh(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """The parameters of each mesh, in the order of the first of each: torch works on those of one at a time."""
    found: dict[DeviceMesh | None, list[Tensor]] = {}
    for parameter in parameters:
        found.setdefault(parameter.device_mesh if isinstance(parameter, DTensor) else None, []).append(parameter)
    return list(found.values())


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> Tensor:
    """Scales the gradients to an L2 norm over all ranks of at most `max_norm`; returns the norm before, a float32
    scalar that is the same on every rank."""
    meshes = by_mesh(p for p in parameters if p.grad is not None) or [[]]
    norms = [torch.nn.utils.get_total_norm([p.grad for p in one if p.grad is not None]) for one in meshes]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    total = whole[0] if len(whole) == 1 else torch.linalg.vector_norm(torch.stack(whole))
    for one in meshes:
        torch.nn.utils.clip_grads_with_norm_(one, max_norm, total)
    return total


def is_first_holder(tensor: Tensor, ranks: Ranks) -> bool:
    """Whether of the ranks that hold the same of a tensor, this is the first."""
    if not isinstance(tensor, DTensor):
        return ranks.rank == 0
    place = tensor.device_mesh.get_coordinate() or ()
    return all(at == 0 for at, held in zip(place, tensor.placements, strict=True) if held.is_replicate())


def _move(module: nn.Module, device: torch.device) -> None:
    """What has values and is not yet divided, to the device."""
    for tensor in (*module.parameters(), *module.buffers()):
        if not isinstance(tensor, DTensor) and not tensor.is_meta:
            tensor.data = tensor.data.to(device)


@torch.no_grad()
def _fill(model: PreTrainedModel, device: torch.device, source: Source) -> None:
    """Gives values to what is on the meta device."""
    names = {name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta}
    model._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor)
    tensors = dict((*model.named_parameters(), *model.named_buffers()))
    held = {name: t.to_local() if isinstance(t := tensors[name], DTensor) else t for name in names}
    left = {name for name, tensor in held.items() if tensor.numel()}
    for layer in (*range(len(decoder_layers(model))), None):
        with source(layer, tensors) as values:
            for name in names & values.keys():
                held[name].copy_(values[name])
                left.discard(name)
        return_freed_memory()
    if left:
        raise CorruptDataError(f"no values for {', '.join(sorted(left)[:4])}; copy the whole model folder")
