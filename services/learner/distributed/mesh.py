"""The ranks of a learner as a mesh: which of them share one copy of the weights, and which divide rows or experts."""

from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from services.learner.distributed.settings import MeshShape


@dataclass(frozen=True, slots=True)
class Mesh:
    """The mesh in its views: for FSDP2 of experts and of all other weights, and for what travels in a layer."""

    dense: DeviceMesh  # (shard), or (replicate, shard) where there are several copies, of all holders of a copy
    experts: DeviceMesh  # the same of those that hold the same experts; `dense` where these are not divided
    expert: DeviceMesh | None  # (expert), the ranks that divide them
    context: DeviceMesh | None  # (context), the ranks that divide a row


def make_mesh(device_type: str, shape: MeshShape) -> Mesh:
    """Collective: all ranks of the process group. Neighbours divide the experts, as tokens travel most."""
    copies = (shape.replicate, shape.holders)
    dense = init_device_mesh(device_type, copies, mesh_dim_names=("replicate", "shard"))
    names = ("replicate", "shard") if shape.replicate > 1 else ("shard",)
    routed, context = dense, None
    if shape.expert > 1:
        of_experts = (shape.replicate, shape.shard * shape.context, shape.expert)
        routed = init_device_mesh(device_type, of_experts, mesh_dim_names=("replicate", "shard", "expert"))
    if shape.context > 1:
        of_rows = (shape.replicate * shape.shard, shape.context, shape.expert)
        context = init_device_mesh(device_type, of_rows, mesh_dim_names=("reader", "context", "expert"))["context"]
    return Mesh(dense[names], routed[names], routed["expert"] if shape.expert > 1 else None, context)
