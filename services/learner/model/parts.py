"""A model by the names and in the dtype of its folder: what this rank holds of it, and all of it, piece by piece.

transformers reverts its own conversion (`transformers.core_model_loading.revert_weight_conversion`, 5.19), for the rows
that are here. In each family that is trained, a tensor of the folder is one of the model, or one of an expert, which is
a row of a tensor of the model: so a shard by rows holds rows of the folder's tensors, and nothing but the factors of
LoRA has to be gathered.
"""

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from services.learner.distributed.fsdp import is_first_holder
from services.learner.distributed.ranks import Ranks
from services.learner.model import lora
from shared.errors import PreconditionError
from shared.weights.outgoing import NAMES
from shared.weights.rendezvous import Rows, TensorSpec

_EXPERT = re.compile(r"(?<=\.experts\.)\d+(?=\.)")


class Parts:
    """The tensors of a model that several ranks may divide, as its folder has them."""

    def __init__(self, model: PreTrainedModel, ranks: Ranks, dtype: torch.dtype) -> None:
        """Args: dtype: of parameters. Buffers keep theirs: a correction bias selects experts."""
        self._model = model
        self._ranks = ranks
        self._dtype = dtype

    def specs(self) -> list[TensorSpec]:
        """All tensors of the folder, those of other ranks too."""
        whole = {name: torch.empty(t.shape, dtype=self._of(t), device="meta") for name, t in self._held().items()}
        reverted = self._reverted(whole)
        return [TensorSpec(name, NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in reverted.items()]

    @torch.no_grad()
    def rows(self) -> Iterator[tuple[Rows, Tensor]]:
        """The rows that this rank holds and no rank before it does, contiguous. Collective with LoRA.

        A tensor may share memory with the model.

        Raises:
            PreconditionError: a tensor is divided otherwise than by rows.
        """
        adapters = lora.adapters(self._model)
        for name, tensor in self._held().items():
            local, first = _local(name, tensor)
            if name in adapters:
                local = lora.merged_rows(local.float(), first, adapters[name])
            if local.numel() and is_first_holder(tensor, self._ranks):
                for made, part in self._reverted({name: local.to(self._of(tensor))}).items():
                    yield _placed(made, part, first), part.contiguous()

    @torch.no_grad()
    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors of the folder, on rank 0; none on the others. Collective: one is gathered at a time."""
        adapters = lora.adapters(self._model)
        for name, tensor in self._held().items():
            # An adapter is merged in float32, so the cast comes last.
            cast = tensor.detach() if name in adapters else tensor.detach().to(self._of(tensor))
            gathered = cast.full_tensor() if isinstance(cast, DTensor) else cast
            if self._ranks.rank != 0:
                gathered = torch.empty(0)
            if name in adapters:
                gathered = lora.merged_rows(gathered.float(), 0, adapters[name]).to(self._of(tensor))
            if self._ranks.rank == 0:
                yield from self._reverted({name: gathered}).items()

    def _reverted(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(revert_weight_conversion(self._model, dict(tensors)))

    def _held(self) -> dict[str, Tensor]:
        """The tensors of the model, by the names that it has without adapters; of tied ones the first."""
        tied = self._model.all_tied_weights_keys
        state = self._model.state_dict(keep_vars=True)
        named = {lora.plain_name(name): tensor for name, tensor in state.items() if ".lora_" not in name}
        return {name: tensor for name, tensor in named.items() if name not in tied}

    def _of(self, tensor: Tensor) -> torch.dtype:
        return self._dtype if isinstance(tensor, nn.Parameter) else tensor.dtype


def _local(name: str, tensor: Tensor) -> tuple[Tensor, int]:
    """What this rank has of a tensor, and its first row."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), 0
    local = tensor.to_local().detach()
    if not local.numel():
        return local, 0
    (chunk,) = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]  # torch gives it no types
    if tuple(chunk.sizes[1:]) != tuple(tensor.shape[1:]):
        raise PreconditionError(
            f"{name} is divided along another dimension than its first; set run.weights_transfer to files"
        )
    return local, int(chunk.offsets[0])


def _placed(name: str, part: Tensor, first: int) -> Rows:
    """Where a part belongs: to an expert, counted from the first that is here, or to rows of a tensor."""
    count = len(part) if part.ndim else 1
    if _EXPERT.search(name):
        return Rows(_EXPERT.sub(lambda found: str(int(found[0]) + first), name), 0, count)
    return Rows(name, first, count)
