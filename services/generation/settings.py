"""Settings of the generation service: the table [generation]."""

from typing import Literal

from pydantic import Field

from shared.settings import BaseSettings, Door


class GenerationSettings(Door):
    port: int = Field(50051, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    metrics_port: int = Field(9101, ge=0, le=65535, description="Prometheus port; 0 takes a free one")
    engine: Literal["vllm", "torch"] = Field("vllm", description="what samples")
    max_model_len: int | None = Field(None, ge=2, description="prompt and response in tokens; default: the model's own")
    max_num_seqs: int = Field(128, ge=1, description="sequences that the engine samples at once")
    kv_cache_bytes: int = Field(256 << 20, ge=1 << 20, description="vLLM's KV cache")
    device: str = Field("cpu", description="device of the torch engine")
    threads: int = Field(1, ge=1, description="CPU threads of the engine")
    max_tokens: int = Field(256, ge=1, description="response length where a request names none")
    groups_in_flight: int = Field(16, ge=1, description="prompts of the stream that are sampled at once")
    weights_poll_seconds: float = Field(0.1, gt=0, description="how often to look for published weights")


class Settings(BaseSettings):
    generation: GenerationSettings = GenerationSettings()
