"""Settings of the vLLM engine: the table [generation.vllm]."""

import platform
from typing import Literal

from pydantic import Field

from shared.errors import PreconditionError
from shared.processor import processor
from shared.table import Table


class VllmSettings(Table):
    """How vLLM is started."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32", description="of weights and activations; auto takes the model's own"
    )
    quantization: str | None = Field(None, description="vLLM's name of it; default: what config.json says")
    kv_cache_bytes: int = Field(
        256 << 20,
        ge=1 << 20,
        description="memory of the KV cache; too little preempts sequences, and it must hold one of max_model_len",
    )
    gpu_memory_utilization: float | None = Field(
        None,
        gt=0,
        le=1,
        description="share of a GPU's memory for all of vLLM; sizes the KV cache in kv_cache_bytes' place",
    )
    max_num_batched_tokens: int | None = Field(None, ge=1, description="tokens of one step; default: vLLM's choice")
    enable_prefix_caching: bool = Field(True, description="share the KV cache of equal beginnings")
    enable_chunked_prefill: bool = Field(False, description="cut long prompts in pieces; not on CPU")
    enforce_eager: bool = Field(True, description="neither compile nor capture graphs; on a GPU, false is faster")
    moe_backend: str = Field("auto", description="vLLM's name of the kernels of experts; one that routes is refused")
    attention_backend: str = Field(
        "auto",
        description="vLLM's name of the attention kernels; auto takes vLLM's choice, on CPU those that are exact in "
        "every dtype on every processor",
    )
    model_runner: Literal["v1", "v2"] = Field("v1", description="vLLM's own; v2 is for GPUs, and has never run here")
    tensor_parallel_size: int = Field(1, ge=1, description="processes, or GPUs, that share each layer")
    data_parallel_size: int = Field(1, ge=1, description="only 1: start more generation services in its place")
    enable_expert_parallel: bool = Field(False, description="split experts over these processes, whole; not on CPU")
    speculative_tokens: int = Field(0, ge=0, description="only 0: router rows cannot follow rejected drafts")
    answer_seconds: float = Field(
        300.0, gt=0, description="how long vLLM may take to start or to load weights before it is given up for dead"
    )

    def refuse_inexact(self, *, on_cpu: bool) -> None:
        """Refuses what the capture of router scores does not follow exactly, and what this processor cannot compute.

        Raises:
            PreconditionError: names the setting, its value and what to set instead.
        """
        if on_cpu and platform.machine() == "x86_64" and "AVX2" not in (found := processor()).instructions:
            raise PreconditionError(
                f"generation.engine is 'vllm', whose kernels need AVX2, and this machine has {found}; set it to 'torch'"
            )
        if self.data_parallel_size > 1:
            raise PreconditionError(
                f"generation.vllm.data_parallel_size is {self.data_parallel_size}; set it to 1 and start as many "
                "generation services, which share the streams without further settings"
            )
        if self.speculative_tokens:
            raise PreconditionError(
                f"generation.vllm.speculative_tokens is {self.speculative_tokens}; set it to 0: router rows are kept "
                "for the one token that a step samples, not for drafts"
            )
        if self.model_runner == "v2" and on_cpu:
            raise PreconditionError(
                "generation.vllm.model_runner is v2; set it to v1: vLLM's second runner needs a GPU with Triton"
            )
        if self.enable_chunked_prefill and on_cpu:
            # Of a prompt that is cut in two, vLLM throws the first draw away and rewinds the request's generator, which
            # a generator on CPU cannot: the child would die where a step has fewer tokens left than a seeded prompt.
            raise PreconditionError(
                "generation.vllm.enable_chunked_prefill is true; set it to false: on CPU, vLLM dies of a seeded prompt "
                "that is cut in two"
            )
        if self.enable_expert_parallel and on_cpu:
            raise PreconditionError(
                "generation.vllm.enable_expert_parallel is true; set it to false: on CPU, the kernels of vLLM crash "
                "when a process has a part of the experts"
            )
