"""The ranks of a learner as a mesh: which of them share one copy of the weights, and which have copies of their own."""

from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from services.learner.distributed.settings import MeshShape


@dataclass(frozen=True, slots=True)
class Mesh:
    """The mesh in its two views, for FSDP2 of experts and of all other weights."""

    dense: DeviceMesh  # (shard), or (replicate, shard) where there are several copies, of all holders of a copy
    experts: DeviceMesh  # the same of those that hold the same experts; `dense` where these are not divided
    expert: DeviceMesh | None  # (expert), the ranks that divide them


def make_mesh(device_type: str, shape: MeshShape) -> Mesh:
    """Collective: all ranks of the process group. Neighbours divide the experts, as tokens travel most."""
    copies = (shape.replicate, shape.holders)
    dense = init_device_mesh(device_type, copies, mesh_dim_names=("replicate", "shard"))
    names = ("replicate", "shard") if shape.replicate > 1 else ("shard",)
    if shape.expert == 1:
        return Mesh(dense[names], dense[names], None)
    routed = init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard", "expert"))
    return Mesh(dense[names], routed[names], routed["expert"])
