"""The ranks of a learner as a mesh: which of them share one copy of the weights, and which have copies of their own."""

from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from services.learner.distributed.settings import MeshShape


@dataclass(frozen=True, slots=True)
class Mesh:
    """The mesh as FSDP2 takes it."""

    dense: DeviceMesh  # (shard), or (replicate, shard) where there are several copies


def make_mesh(device_type: str, shape: MeshShape) -> Mesh:
    """Collective: all ranks of the process group, in their order, the last dimension first."""
    dense = init_device_mesh(device_type, (shape.replicate, shape.shard), mesh_dim_names=("replicate", "shard"))
    return Mesh(dense if shape.replicate > 1 else dense["shard"])
