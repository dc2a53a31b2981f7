"""What ranks hold together."""

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from services.learner.distributed.ranks import Ranks


def full_state_dict(model: nn.Module, ranks: Ranks) -> dict[str, Tensor]:
    """The unsharded state_dict on rank 0; {} on the others. Collective."""
    state = {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in model.state_dict().items()
    }
    return state if ranks.rank == 0 else {}
