"""A policy in memory for the torch engine: its weights, and taps on its routers."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.core_model_loading import revert_weight_conversion

from routershift.routing.families import Family, families, family_of
from routershift.routing.layout import RouterLayout
from routershift.routing.routers import layout_of, log_scores, read, routers_of
from routershift.trajectory import RouterExport
from services.generation.engines.base import Arriving, Files, Weights
from services.generation.engines.model_files import check_finite, check_specs, check_weights
from services.generation.engines.torch import attention
from shared.errors import PreconditionError
from shared.models.loading import load_model, model_of
from shared.models.tensors import model_tensors, require_float
from shared.process.detached import detached
from shared.weights.broadcast import receive

OWN_ATTENTION = "eager"  # transformers' name for what a model's own code computes

_EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

# What every family has; `_policy` sets our own attention in its place.
_OPTIONS: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": OWN_ATTENTION}
# One small GEMM per expert. With 256 sequences on one core a step takes 11 ms, against 15 ms with transformers' loop
# ("eager") and 158 ms with "batched_mm", which copies the weights of K experts for each token.
_EXPERTS = "grouped_mm"


class RouterTap:
    """Keeps what the routers did in the latest forward pass."""

    def __init__(
        self, routers: list[torch.nn.Module], layout: RouterLayout, family: Family, export: RouterExport
    ) -> None:
        self._score_function = layout.score_function
        self._id_dtype = layout.id_dtype
        self._export = export
        self._family = family
        self._logits: list[torch.Tensor] = [torch.empty(0)] * len(routers)  # per layer [N, E]
        self._ids: list[torch.Tensor] = [torch.empty(0)] * len(routers)  # per layer [N, K]
        for index, router in enumerate(routers):
            router.register_forward_hook(self._hook(index))

    def _hook(self, index: int) -> Any:
        def keep(router: torch.nn.Module, args: Any, output: Any) -> None:
            self._logits[index], self._ids[index] = read(self._family, router, output)

        return keep

    def rows(self, positions: torch.Tensor) -> dict[str, NDArray[Any]]:
        """What is exported at `positions` [n] of the flattened forward pass, each [n, L, ...] as in `RouterTrace`."""
        ids = torch.stack([layer[positions] for layer in self._ids], dim=1)
        rows = {"expert_ids": ids.cpu().numpy().astype(self._id_dtype)}
        if self._export is RouterExport.IDS:
            return rows
        logits = torch.stack([layer[positions] for layer in self._logits], dim=1)
        rows["log_scores"] = log_scores(self._score_function, logits, ids).half().cpu().numpy()
        if self._export is RouterExport.FULL:
            rows["logits"] = logits.half().cpu().numpy()
        return rows


@dataclass(frozen=True, slots=True)
class Policy:
    """One version's weights, ready to sample."""

    model: Any  # a transformers model; its classes have no types
    export: RouterExport
    layout: RouterLayout | None  # None: dense, or of a family that is not known
    tap: RouterTap | None  # None: no routers, or nothing of them is exported

    @property
    def device(self) -> torch.device:
        device: torch.device = self.model.device
        return device


def load_folder(folder: Path, device: str, export: RouterExport = RouterExport.TOPK) -> Policy:
    """Loads a model folder in float32.

    Raises:
        NotFoundError: no folder, no config.json or no safetensors files.
        CorruptDataError, InvalidInputError: what the folder has is not what the model has; see `model_tensors`.
        PreconditionError: an MoE family whose routers the engine cannot read, quantised weights, an unreadable
            folder, or one that wants its own code run.
    """
    require_float(folder)
    model_tensors(folder)
    transformers.utils.logging.disable_progress_bar()
    try:
        model = load_model(transformers.AutoModelForCausalLM, folder, **_OPTIONS)
    except PreconditionError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise PreconditionError(f"model folder {folder} cannot be loaded: {error}") from error
    return _policy(model, device, export)


async def prepare(like: Policy, shapes: dict[str, tuple[int, ...]], weights: Weights) -> Policy:
    """A policy of the same architecture with other weights, for `Engine.update_weights`; its errors are those.

    Args:
        shapes: of the model, by name.

    Raises:
        CorruptDataError: a file is cut off.
    """
    if isinstance(weights, Files):
        tensors = await asyncio.to_thread(_checked, shapes, weights.paths)
    else:
        check_specs(shapes, weights.specs)
        tensors = await detached(lambda: _received(like, weights))
        await asyncio.to_thread(check_finite, tensors.items())
    return await asyncio.to_thread(_with_weights, like, tensors)


def _received(like: Policy, weights: Arriving) -> dict[str, torch.Tensor]:
    """See `receive`."""
    base = None if weights.rendezvous.base is None else _tensors_of(like)
    return receive(weights.rendezvous, weights.first_rank, weights.specs, like.device, base)


def _tensors_of(policy: Policy) -> dict[str, torch.Tensor]:
    """Its weights by the names of the model folder, on its device; they share its memory where they can."""
    return dict(revert_weight_conversion(policy.model, policy.model.state_dict()))


def _checked(shapes: dict[str, tuple[int, ...]], files: Sequence[Path]) -> dict[str, torch.Tensor]:
    check_weights(shapes, files)
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _with_weights(like: Policy, tensors: dict[str, torch.Tensor]) -> Policy:
    model = model_of(type(like.model), like.model.config, tensors, **_OPTIONS)
    return _policy(model, str(like.device), like.export)


def _policy(model: Any, device: str, export: RouterExport) -> Policy:
    model_type, layout = model.config.model_type, layout_of(model)
    if not model._can_set_attn_implementation():
        raise PreconditionError(
            f"model_type {model_type!r} does not run on the torch engine: its code in transformers takes no attention "
            "but its own"
        )
    model.to(device).eval()
    model.set_attn_implementation(attention.NAME)
    family = family_of(model_type)
    if layout is not None and family is not None and not family.sparse:
        model.set_experts_implementation(_EXPERTS)
    if export is RouterExport.NONE:
        return Policy(model, export, layout, None)
    if family is None and any(getattr(model.config, name, None) for name in _EXPERT_COUNTS):
        raise PreconditionError(
            f"model_type is {model_type!r}; the torch engine reads the routers of {sorted(families())}. Set "
            "generation.router_export to none to sample without them"
        )
    if layout is None or family is None:
        return Policy(model, export, None, None)
    tap = RouterTap(list(routers_of(model).values()), layout, family, export)
    return Policy(model, export, layout, tap)
