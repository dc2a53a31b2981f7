"""What vLLM refuses, or computes wrongly, known from config.json and the settings alone: nothing here imports vLLM."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from routershift.routing.families import family_of
from services.generation.engines.vllm.settings import VllmSettings
from shared.errors import PreconditionError
from shared.models.layout import context_length, text_config

# In config.json of models with latent attention (DeepSeek).
_LATENT = "kv_lora_rank"
# The attention kernels to ask for on CPU. For latent attention vLLM itself prefers AMX_MLA where the processor has AMX,
# but that takes bfloat16 alone, and an update of weights kills it.
_CPU_ATTENTION, _CPU_LATENT_ATTENTION = "CPU_ATTN", "CPU_MLA"
# The head sizes that CPU_ATTN has kernels for; a test holds them to vLLM's own list.
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def built_for_cpu() -> bool:
    """Whether the vLLM that is installed is the one for CPUs, which vLLM itself tells by its version."""
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError:  # or by the name of the package
        return True


def refuse(
    model: Path, config: Mapping[str, Any], settings: VllmSettings, limits: tuple[int | None, int], *, on_cpu: bool
) -> None:
    """Refuses what vLLM cannot serve of this model with these settings.

    Args:
        model: its folder, for messages.
        config: its config.json.
        limits: generation.max_model_len and generation.max_num_seqs.
        on_cpu: whether vLLM is to compute on CPU.

    Raises:
        PreconditionError: names the setting or the property of the model, its value and what to set instead.
    """
    settings.refuse_inexact(on_cpu=on_cpu)
    text = text_config(config)
    kind = str(text.get("model_type"))
    family = family_of(kind)
    if on_cpu and family is not None and not family.vllm_on_cpu:
        raise PreconditionError(
            f"vLLM cannot serve model folder {model} on CPU: it has what {kind!r} needs for GPUs alone; set "
            "generation.engine to torch"
        )
    attention_backend(settings.attention_backend, config, on_cpu)
    _refuse_sizes(model, text, settings, on_cpu)
    _refuse_batches(settings, limits[0] or context_length(text), limits[1])


def attention_backend(backend: str, config: Mapping[str, Any], on_cpu: bool) -> str | None:
    """The kernels to ask vLLM for; None leaves it to vLLM, which chooses on CPU by the processor.

    Raises:
        PreconditionError: others on CPU. vLLM would take its own choice in silence, or die of new weights.
    """
    if not on_cpu:
        return None if backend == "auto" else backend
    exact = _CPU_LATENT_ATTENTION if config.get(_LATENT) else _CPU_ATTENTION
    if backend not in ("auto", exact):
        raise PreconditionError(
            f"generation.vllm.attention_backend is {backend!r}; set it to auto: of what vLLM has on CPU, only {exact} "
            "computes this model exactly and takes new weights"
        )
    return exact


def _refuse_sizes(model: Path, text: Mapping[str, Any], settings: VllmSettings, on_cpu: bool) -> None:
    heads, workers = text.get("num_attention_heads"), settings.tensor_parallel_size
    if not isinstance(heads, int) or heads < 1:
        return
    if heads % workers:
        raise PreconditionError(
            f"generation.vllm.tensor_parallel_size is {workers}, and the model has {heads} attention heads; set it to "
            "a divisor of that"
        )
    hidden = text.get("hidden_size")
    size = text.get("head_dim") or (hidden // heads if isinstance(hidden, int) else None)
    if on_cpu and not text.get(_LATENT) and size is not None and size not in CPU_HEAD_SIZES:
        raise PreconditionError(
            f"model folder {model} has head_dim {size}, and vLLM has CPU kernels for "
            f"{', '.join(map(str, CPU_HEAD_SIZES))}; set generation.engine to torch, or take another model"
        )


def _refuse_batches(settings: VllmSettings, longest: int | None, most: int) -> None:
    tokens = settings.max_num_batched_tokens
    if tokens is None:
        return
    setting = f"generation.vllm.max_num_batched_tokens is {tokens}"
    if tokens < most:
        raise PreconditionError(
            f"{setting}, and generation.max_num_seqs {most} sequences take a token each in a step; raise the one or "
            "lower the other"
        )
    if longest is not None and tokens < longest and not settings.enable_chunked_prefill:
        raise PreconditionError(
            f"{setting}, and a prompt may have up to {longest} tokens, which one step must take whole without "
            "generation.vllm.enable_chunked_prefill; raise it, or lower generation.max_model_len"
        )
