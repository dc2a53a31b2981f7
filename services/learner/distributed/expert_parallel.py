"""Expert parallelism: each rank of a group holds whole experts of every layer, and tokens travel to their experts.

transformers says for each family which weights are divided, and its forward of the experts sends the tokens there and
back (`EpDispatchExpertsParallel` in its 5.19: all-to-all). Routers stay as they are on every rank, so what watches them
or replays their choice does too.
"""

from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel
from transformers.distributed.tensor_parallel import apply_expert_parallelism

from routershift.routing.routers import layout_of
from services.learner.distributed.settings import MeshShape
from shared.errors import InvalidInputError, PreconditionError

_LAYERS = "model.layers.*."
_SENDS = "ep_dispatch_experts"  # transformers' name of the way of tokens to experts and back


def check(model: PreTrainedModel, shape: MeshShape) -> None:
    """Whether the experts of a model can be divided.

    Raises:
        PreconditionError: the model has none, or transformers has no plan for its family.
        InvalidInputError: the mesh does not divide their number evenly, which is all that was tried.
    """
    if shape.expert == 1:
        return
    set_to, fix = f"learner.mesh.expert is {shape.expert}", "set learner.mesh.expert = 1"
    kind, layout = model.config.model_type, layout_of(model)
    if layout is None:
        raise PreconditionError(f"{set_to}; model_type {kind!r} has no experts that are known; {fix}")
    if _SENDS not in _plan(model).values():
        raise PreconditionError(
            f"{set_to}; transformers has no plan that sends tokens to the experts of model_type {kind!r}; {fix}"
        )
    if layout.num_experts % shape.holders:
        raise InvalidInputError(
            f"{set_to} and learner.mesh.shard {shape.shard}; the {layout.num_experts} experts of a layer are not a "
            f"multiple of {shape.holders}: lower one of them, and raise learner.mesh.replicate"
        )


def divide(layer: nn.Module, model: PreTrainedModel, mesh: DeviceMesh) -> list[nn.Module]:
    """Leaves this rank its experts of a decoder layer, in place.

    Args:
        layer: with all experts.
        mesh: the ranks that divide them, one dimension.

    Returns:
        The modules whose parameters are now DTensors of this mesh; none in a dense layer.
    """
    plan = _plan(model)
    apply_expert_parallelism(layer, mesh, None, plan)  # None: there is no tensor parallelism
    return [module for name, module in layer.named_modules() if plan.get(name) == _SENDS]


def _plan(model: PreTrainedModel) -> dict[str, Any]:
    """transformers' plan, by path in a decoder layer."""
    return {path.removeprefix(_LAYERS): way for path, way in model.ep_plan.items() if path.startswith(_LAYERS)}
