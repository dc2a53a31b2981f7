"""LoRA (arXiv 2106.09685): adapters W + (alpha / rank) B A in place of training the weights, through peft.

Adapted are the projections of attention, and the feed-forward weights: routed experts (each expert has factors of its
own), shared experts and dense layers. Routers never are: their tables are tiny, and a merge rounds W + BA to the dtype
of the model folder, which would move the engine's routes away from the learner's. There is no dropout: the sampler has
none, so its noise would look like policy shift.

peft's own wrapper of stacked experts builds W + BA of all experts in each forward pass and keeps it for the backward
pass: a second copy of the experts of every layer, which FSDP2 does not free. `GroupedExperts` applies the factors to
the tokens instead, in every family but Llama-4. Forward and backward of one layer (64 experts of 1.5 MiB, top 8, hidden
512, 512 tokens, rank 16; one CPU core): with peft's wrapper 2.7 times as long, and 128 MiB instead of 37 kept for the
backward pass; training the experts themselves takes 1.4 times as long as the adapters.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer, ParamWrapper
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.functional import grouped_mm
from transformers import PreTrainedModel

from routershift.routing.families import ATTENTION, FEED_FORWARD, family_of
from services.learner.settings import LoraSettings
from shared.errors import PreconditionError

_ADAPTER = "default"
_FACTORS = ("lora_A", "lora_B")
_STACKED = ("gate_up_proj", "down_proj")  # of all experts of a layer: [E, out, in], or [E, in, out] where transposed


class GroupedExperts(ParamWrapper):  # type: ignore[misc]  # peft has no types for mypy here
    """Routed experts with adapters that are applied to the tokens; W + BA is never made.

    Wrappers nest, one for each stacked parameter, and only the outermost is called. While B is zero it gives the very
    bits of `grouped_mm_experts_forward` in transformers.
    """

    def forward(self, hidden_states: Tensor, expert_ids: Tensor, weights: Tensor) -> Tensor:
        """[N, H] of N tokens, whose experts are `expert_ids` [N, K] with combine weights `weights` [N, K]."""
        experts = self.get_base_layer()
        if self.disable_adapters:
            plain: Tensor = experts(hidden_states, expert_ids, weights)
            return plain
        tokens, top_k = expert_ids.shape
        ids, order = expert_ids.reshape(-1).sort()
        ends = torch.searchsorted(ids, torch.arange(experts.num_experts, device=ids.device), right=True).int()
        up, down = self._wrappers()
        values = experts._apply_gate(up._project(hidden_states[order // top_k], ids, ends))
        values = down._project(values, ids, ends) * weights.reshape(-1)[order, None]
        return values[order.argsort()].view(tokens, top_k, -1).sum(dim=1).to(hidden_states.dtype)

    def _wrappers(self) -> list["GroupedExperts"]:
        """This one and those nested in it, in the order of `_STACKED`."""
        found: dict[str, GroupedExperts] = {}
        wrapper: nn.Module = self
        while isinstance(wrapper, GroupedExperts):
            found[wrapper.parameter_name] = wrapper
            wrapper = wrapper.base_layer
        return [found[name] for name in _STACKED]

    def _project(self, values: Tensor, ids: Tensor, ends: Tensor) -> Tensor:
        """[S, in] to [S, out] for S pairs of token and expert, sorted by expert; those of expert e end at `ends[e]`."""
        experts = self.get_base_layer()
        weight = self.get_param()
        first, second, scaling = self.get_delta_factors(_ADAPTER)
        if not experts.is_transposed:
            weight, first, second = weight.mT, second.mT, first.mT
        values = values.to(weight.dtype)
        projected = grouped_mm(values, weight, offs=ends)
        if experts.has_bias:
            projected = projected + getattr(experts, f"{self.parameter_name}_bias")[ids]
        # peft keeps B of all experts interleaved, strides that a grouped product does not take.
        delta = grouped_mm(grouped_mm(values, first, offs=ends), second.contiguous(), offs=ends)
        return torch.add(projected, delta, alpha=scaling)


def add_lora(model: PreTrainedModel, settings: LoraSettings, seed: int) -> None:
    """Freezes a float32 model and puts adapters, all that is trained from here on, into its decoder layers, in place.

    They are float32 and drawn from `seed`, A uniform and B zero: the model computes what it did before. Its class, its
    routers and the names of its other modules stay. Hooks, FSDP2 and the optimizer are to come afterwards.

    Raises:
        PreconditionError: the model has none of the weights that `settings.targets` names.
    """
    config = _config(model, settings)
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        # In a list: in a model that it recognises, peft takes shared experts for the routed ones of old checkpoints.
        inject_adapter_in_model(config, nn.ModuleList([model]), adapter_name=_ADAPTER)
    for module in model.modules():
        # Experts that transformers can compute as grouped products say whether they have a gate.
        if isinstance(module, ParamWrapper) and hasattr(module.get_base_layer(), "has_gate"):
            module.__class__ = GroupedExperts


def save_adapters(
    folder: Path, state: Mapping[str, Tensor], model: PreTrainedModel, settings: LoraSettings, base: str
) -> None:
    """Writes the adapters alone in peft's format: adapter_model.safetensors and adapter_config.json, in a new folder.

    Args:
        state: full state_dict of the adapted model, on any device; adapters are float32.
        base: the model that they belong to, a folder or a name on the hub.
    """
    adapters = {
        f"base_model.model.{name.replace(f'.{_ADAPTER}.', '.')}": tensor.contiguous()
        for name, tensor in state.items()
        if ".lora_" in name
    }
    folder.mkdir(parents=True)
    save_file(adapters, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = _config(model, settings)
    if config.target_parameters:
        # Where experts are stacked, peft takes linear layers of these names for the experts of old checkpoints.
        linear = config.target_modules & {*FEED_FORWARD}
        config.target_modules -= linear
        config.target_parameters = sorted({*config.target_parameters, *(f"{name}.weight" for name in linear)})
    config.base_model_name_or_path, config.task_type, config.inference_mode = base, "CAUSAL_LM", True
    config.save_pretrained(folder)


def _config(model: PreTrainedModel, settings: LoraSettings) -> LoraConfig:
    """What peft is told to adapt, for a model with adapters as for one without. Raises as `add_lora` does."""
    family = family_of(model.config.model_type)
    modules: set[str] = set()
    if settings.targets != "experts":
        modules |= set(family.lora_attention if family else ATTENTION)
    stacked: set[str] = set()
    if settings.targets != "attention":
        modules |= set(family.lora_feed_forward if family else FEED_FORWARD)
        stacked = {_leaf(name) for name, weight in model.named_parameters() if weight.ndim == 3} & set(_STACKED)
    linear = {
        _leaf(plain_name(name)) for name, module in model.named_modules() if isinstance(module, nn.Linear)
    } & modules
    if not linear | stacked:
        raise PreconditionError(
            f"lora.targets is {settings.targets!r}; model type {model.config.model_type!r} has no linear layers named "
            f"{', '.join(sorted(modules))} and no stacked experts. Use lora.rank 0 for it"
        )
    return LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, target_modules=linear, target_parameters=sorted(stacked)
    )


def adapters(model: nn.Module) -> dict[str, LoraLayer]:
    """The adapter of each tensor that has one, by the name that it has without."""
    return {
        f"{plain_name(path)}.{getattr(module, 'parameter_name', 'weight')}": module
        for path, module in model.named_modules()
        if isinstance(module, LoraLayer)
    }


@torch.no_grad()
def factors(model: nn.Module, *, is_kept: bool) -> dict[str, Tensor]:
    """The factors of all adapters, whole, by their names in the state_dict. Collective.

    Args:
        is_kept: False on ranks that want none: they get {}.
    """
    found = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if ".lora_" in name:
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if is_kept:
                found[name] = whole.detach().cpu()
    return found


@torch.no_grad()
def merged_rows(rows: Tensor, first: int, adapter: LoraLayer) -> Tensor:
    """W + (alpha / rank) B A of some rows of a sharded weight, float32. Collective: the factors are gathered.

    Args:
        rows: those that this rank holds of W, [n, ...]; there may be none.
        first: of them.
    """
    factors = [getattr(adapter, factor)[_ADAPTER].weight for factor in _FACTORS]
    a, b = (factor.full_tensor() if isinstance(factor, DTensor) else factor for factor in factors)
    return _adapted(rows, a, b, adapter, first) if rows.numel() else rows


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """The model computes what it did before `add_lora`. For forward passes without gradient."""
    adapters = [module for module in model.modules() if isinstance(module, LoraLayer)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for adapter in adapters:
        adapter.enable_adapters(False)
    # peft has frozen the adapters too; FSDP2 decides in its first forward pass what will get gradients.
    for parameter in trained:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.enable_adapters(True)


def _adapted(weight: Tensor, a: Tensor, b: Tensor, adapter: LoraLayer, first: int = 0) -> Tensor:
    """`weight` [E, out, in], [E, in, out] where transposed, or [out, in]; a linear layer is one expert.

    Args:
        weight: all of it, or its rows from `first` on.
        a, b: the factors, whole.
    """
    experts = getattr(adapter, "num_experts", 1)
    a = a.to(weight.dtype).reshape(experts, -1, a.shape[1])  # [E, rank, in]
    b = b.to(weight.dtype).reshape(b.shape[0], -1, experts).permute(2, 0, 1)  # [E, out, rank]
    if getattr(adapter.get_base_layer(), "is_transposed", False):
        a, b = b.mT, a.mT
    here = slice(first, first + len(weight))
    if weight.ndim == 2:
        b = b[:, here]
    else:
        a, b = a[here], b[here]
    stack = weight.reshape(-1, *weight.shape[-2:])
    return torch.baddbmm(stack, b, a, alpha=adapter.scaling[_ADAPTER]).view_as(weight)


def plain_name(name: str) -> str:
    """A name as it was before `add_lora`."""
    return name.replace(".base_layer", "")


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
