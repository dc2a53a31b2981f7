"""Settings of the vLLM engine: the table [generation.vllm]."""

from pydantic import Field

from shared.settings import Table


class VllmSettings(Table):
    kv_cache_bytes: int = Field(
        256 << 20,
        ge=1 << 20,
        description="memory of the KV cache; too little preempts sequences, and it must hold one of max_model_len",
    )
