"""New weights in place of those that serve, in the child of the vLLM engine; written for vLLM 0.32.0.

vLLM's own reload takes the memory of all parameters away, collects what each `weight_loader` is called with, and fills
and packs a layer when it has all its weights. Its code for GPT-OSS copies some tensors straight into the parameters:
these copies would go nowhere. Its experts are therefore handed over one by one, which it takes through `weight_loader`,
and its attention sinks stay where they are, to be copied into.
"""

import re
from collections.abc import Iterator
from typing import Any

import torch
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)
from vllm.model_executor.models.gpt_oss import GptOssForCausalLM

_SINKS = "sinks"
_ALL_EXPERTS = re.compile(r"(.*\.experts\.)((?:gate_up|down)_proj(?:_bias)?)")


def reload(model: Any, model_config: Any, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
    """Replaces all weights; no step may run meanwhile.

    Args:
        model: as vLLM has loaded it.
        model_config: vLLM's.
        tensors: by the names of the model folder.

    Raises:
        RuntimeError: a layer got no weights. The model is then unusable.
    """
    with_sinks = [(name, layer) for name, layer in model.named_modules() if _SINKS in layer._parameters]
    sinks = [layer.get_parameter(_SINKS) for _, layer in with_sinks]
    for layer in model.modules():
        if isinstance(layer, RoutedExperts):
            # While it has a kernel, vLLM copies new expert weights into place without packing them for it.
            layer.quant_method.moe_kernel = None
    initialize_layerwise_reload(model)
    for (_, layer), kept in zip(with_sinks, sinks, strict=True):
        layer.register_parameter(_SINKS, kept)
        get_layerwise_info(layer).reset()
    loaded = model.load_weights(_one_by_one(tensors) if isinstance(model, GptOssForCausalLM) else tensors)
    stale = [name for name, layer in model.named_modules() if _is_stale(layer, model_config)]
    stale += [name for name, _ in with_sinks if f"{name}.{_SINKS}" not in loaded]
    finalize_layerwise_reload(model, model_config)
    if stale:
        raise RuntimeError(f"these layers got no weights: {', '.join(stale)}")
    for (_, layer), kept in zip(with_sinks, sinks, strict=True):
        # In float16, vLLM's attention on CPU has made itself a copy of them, in its first step.
        with torch.inference_mode():
            layer.get_submodule("attn").impl.sinks.copy_(kept)
    for layer in model.modules():
        if isinstance(layer, ParallelLMHead):
            # A head tied to the embedding loads nothing itself, but samples from a packed copy of it.
            layer.quant_method.process_weights_after_loading(layer)


def _one_by_one(tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each expert by itself, in place of tensors of all experts of a layer."""
    for name, tensor in tensors:
        if match := _ALL_EXPERTS.fullmatch(name):
            yield from ((f"{match[1]}{expert}.{match[2]}", each) for expert, each in enumerate(tensor))
        else:
            yield name, tensor


def _is_stale(layer: torch.nn.Module, model_config: Any) -> bool:
    """Whether the update under way has passed by a layer that has weights of its own."""
    if isinstance(layer, RotaryEmbeddingBase) or is_deferred_attention_layer(layer):
        return False
    if isinstance(layer, ParallelLMHead) and model_config.hf_text_config.tie_word_embeddings:
        return False
    info = get_layerwise_info(layer)
    return bool(info.can_load() and info.load_numel <= 0 < info.load_numel_total)
