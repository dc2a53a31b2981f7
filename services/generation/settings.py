"""Settings of the generation service: the table [generation]."""

from typing import Any, Self

from pydantic import Field, model_validator

from routershift.trajectory import RouterExport, ScoreDtype
from services.generation.engines.base import UpdatePolicy
from services.generation.engines.vllm.settings import VllmSettings
from shared.settings import BaseSettings, ServerSettings


class GenerationSettings(ServerSettings):
    """Which engine samples, and what it exports."""

    port: int = Field(50051, ge=0, le=65535, description="gRPC port; 0 takes a free one")
    metrics_port: int = Field(9101, ge=0, le=65535, description="Prometheus port; 0 takes a free one")
    engine: str = Field("vllm", description="what samples: vllm, torch, or the name that another package gave its own")
    engine_settings: dict[str, Any] = Field({}, description="what an engine of another package is told")
    max_model_len: int | None = Field(None, ge=2, description="prompt and response in tokens; default: the model's own")
    max_num_seqs: int = Field(128, ge=1, description="sequences that the engine samples at once")
    max_waiting: int = Field(1024, ge=0, description="sequences beyond these above which direct calls are refused")
    device: str = Field("cpu", description="device of the torch engine")
    threads: int = Field(1, ge=1, description="CPU threads of the engine")
    vllm: VllmSettings = VllmSettings()
    router_export: RouterExport = Field(RouterExport.TOPK, description="what is exported of the routers of each token")
    router_scores: ScoreDtype = Field(
        ScoreDtype.UINT8,
        description="how exported scores travel; default: uint8, but float16 for a learner with "
        "router_shift.layer_aggregation product, router_shift.mismatch_baseline subtract or routing_replay r3_weights",
    )
    router_layers: int | None = Field(
        None,
        ge=1,
        description="layers whose routes each token has, one drawn of each stratum of layers; default: all",
    )
    update_policy: UpdatePolicy = Field(
        UpdatePolicy.KEEP,
        description="running requests when new weights come: keep (their KV cache is computed again), keep_cache (it "
        "is not; of vLLM without enable_prefix_caching), wait (they end first) or abort",
    )
    max_tokens: int = Field(256, ge=1, description="response length where a request names none")
    kv_cache_high_water: float = Field(
        0.9, gt=0, le=1, description="share of the KV cache in use above which no more prompts are taken"
    )
    attempts: int = Field(3, ge=1, description="times that a sample which the engine aborts is begun")
    early_scores: bool = Field(
        False, description="whether each response is scored when it ends, and not with its group when all have ended"
    )
    early_seconds: float = Field(
        10.0, gt=0, description="how long reward may take for an early score; later, it comes with those of the group"
    )
    reward_address: str = Field("127.0.0.1:50052", description="gRPC address of reward, for early scores")
    weights_wait_seconds: float = Field(
        120.0,
        ge=0,
        description="how long a prompt waits for the weights announced last, before weights that are at most "
        "run.max_staleness behind will do",
    )
    weights_poll_seconds: float = Field(0.1, gt=0, description="how often to look for published weights")
    stall_seconds: float = Field(
        30.0, gt=0, description="how long an engine that has sequences may sample nothing before the service ends"
    )

    @model_validator(mode="after")
    def _caches_can_be_kept(self) -> Self:
        keeps_cache = self.update_policy is UpdatePolicy.KEEP_CACHE
        if keeps_cache and self.engine == "vllm" and self.vllm.enable_prefix_caching:
            raise ValueError(
                "update_policy is 'keep_cache', and vllm.enable_prefix_caching true: vLLM would serve what it has "
                "cached of old weights to new prompts as well; set vllm.enable_prefix_caching to false, or "
                "update_policy to 'keep'"
            )
        return self

    @model_validator(mode="after")
    def _layers_have_scores(self) -> Self:
        if self.router_layers is not None and self.router_export is not RouterExport.TOPK:
            raise ValueError(
                f"router_layers is {self.router_layers} and router_export {self.router_export}; it takes layers out of "
                "topk alone: leave router_layers out"
            )
        return self


class Settings(BaseSettings):
    generation: GenerationSettings = GenerationSettings()
