"""The vLLM engine against transformers, family by family: logits, routes and log-probs, before and after updates.

Each family is a tiny random model in float32. The engine samples from it and exports all it can; transformers computes
the same sequences, uncached.
"""

import argparse
import asyncio
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import logsigmoid
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    Glm4MoeConfig,
    GptOssConfig,
    Llama4TextConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)

from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.trajectory import Completion, RouterExport
from services.generation.engines.base import EngineOptions, EngineSampling, Files
from services.generation.engines.vllm.engine import VllmEngine
from services.generation.engines.vllm.settings import VllmSettings
from tests.bench.timing import cpu_seconds

LAYERS, EXPERTS, TOP_K, VOCABULARY = 3, 8, 2, 20
PROMPT = [2, 9, 4, 11, 17]
# All of the vocabulary's log-probs at temperature 1: its logits, but for what is the same for all of them.
SAMPLING = EngineSampling(4, 1.0, 1.0, 0, 32, 1, logprobs=VOCABULARY)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 3,  # vLLM's attention on CPU knows no head of 24
    "num_key_value_heads": 1,
    "intermediate_size": 96,
    "num_experts_per_tok": TOP_K,
    "max_position_embeddings": 256,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
# Experts come from one of two groups; the first layer is dense.
_GROUPED: dict[str, Any] = {
    "n_routed_experts": EXPERTS,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
}
# The only latent attention that vLLM has kernels for on CPU.
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 3,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
_V2: dict[str, Any] = {"topk_method": "group_limited_greedy", "scoring_func": "softmax", "n_shared_experts": 1}
_V3: dict[str, Any] = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
_LLAMA4: dict[str, Any] = {"num_local_experts": EXPERTS, "num_experts_per_tok": 1, "head_dim": 32}
_CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen2_moe": (Qwen2MoeConfig, {"num_experts": EXPERTS, "moe_intermediate_size": 64}),
    "qwen3_moe": (Qwen3MoeConfig, {"num_experts": EXPERTS, "moe_intermediate_size": 64, "head_dim": 32}),
    "mixtral": (MixtralConfig, {"num_local_experts": EXPERTS, "sliding_window": None}),
    "olmoe": (OlmoeConfig, {"num_experts": EXPERTS}),
    "deepseek_v2": (DeepseekV2Config, _GROUPED | _LATENT | _V2),
    "deepseek_v3": (DeepseekV3Config, _GROUPED | _LATENT | _V3),
    "glm4_moe": (Glm4MoeConfig, _GROUPED | {"head_dim": 32}),
    "gpt_oss": (GptOssConfig, {"num_local_experts": EXPERTS, "head_dim": 32, "sliding_window": 16}),
    "llama4": (Llama4TextConfig, _LLAMA4),
}
FAMILIES = tuple(_CONFIGS)
_SIGMOID = ScoreFunction.SIGMOID
_SCORES = {"deepseek_v3": _SIGMOID, "glm4_moe": _SIGMOID, "llama4": _SIGMOID, "gpt_oss": ScoreFunction.SOFTMAX_TOPK}
_FIRST_DENSE = {"deepseek_v2", "deepseek_v3", "glm4_moe"}


@dataclass(frozen=True, slots=True)
class Exactness:
    """How far samples of an engine are from transformers."""

    max_logit_error: float  # over the whole vocabulary at every position, as log-probs
    same_topk: float  # share of the sets of activated experts, one per token and layer
    max_logprob_error: float  # of the tokens sampled
    max_router_error: float  # of exported router logits and log-scores; float16 alone makes 2^-11 of their size

    @classmethod
    def worst(cls, found: Iterable["Exactness"]) -> "Exactness":
        logits, same, logprobs, routers = zip(
            *((e.max_logit_error, e.same_topk, e.max_logprob_error, e.max_router_error) for e in found), strict=True
        )
        return cls(max(logits), min(same), max(logprobs), max(routers))


@dataclass(frozen=True, slots=True)
class Parity:
    """How exact one family is while the weights go A -> B -> A."""

    layout: RouterLayout
    before: Exactness  # on A as loaded
    after_update: Exactness  # the worst on B, and on A again


class Reference:
    """A random model in transformers, and its folder."""

    def __init__(self, folder: Path, family: str, seed: int) -> None:
        config, settings = _CONFIGS[family]
        torch.manual_seed(seed)
        self.model = AutoModelForCausalLM.from_config(config(**(_COMMON | settings)), dtype=torch.float32).eval()
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            if name.endswith(("bias", "sinks")):  # zero in a new model, which would hide that they are lost
                tensor.data.normal_(std=0.3)
        self.model.save_pretrained(folder)
        self.folder = folder
        self.files = sorted(folder.glob("*.safetensors"))

    def compare(self, sample: Completion) -> Exactness:
        """Compares a sample of `PROMPT` with `SAMPLING` and a full export."""
        trace, top = sample.router_trace, sample.top_logprobs
        if trace is None or trace.logits is None or top is None:
            raise ValueError("the sample has no full router trace, or no top log-probs; ask for both")
        logits, routed = self._forward(sample.token_ids)
        logprobs = logits.log_softmax(-1).numpy()
        listed = np.take_along_axis(logprobs, top.token_ids.astype(np.int64), -1)
        own = np.take_along_axis(logprobs, sample.token_ids.astype(np.int64)[:, None], -1)[:, 0]
        same, errors = [], []
        for layer, (router_logits, chosen) in enumerate(routed):
            ids = torch.from_numpy(trace.expert_ids[:, layer]).long()
            same.append((ids.sort(-1).values == chosen.sort(-1).values).all(-1).numpy())
            scores = _log_scores(router_logits, ids, trace.layout.score_function)
            errors += [_error(trace.scores[:, layer], scores.numpy())]
            errors += [_error(trace.logits[:, layer], router_logits.numpy())]
        return Exactness(
            _error(top.logprobs, listed), float(np.mean(same)), _error(sample.logprobs, own), max(errors, default=0.0)
        )

    @torch.no_grad()
    def _forward(self, tokens: NDArray[np.int32]) -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]]]:
        """At the positions that predict `tokens`: logits [T, V], and of each routed layer logits [T, E], ids [T, K]."""
        seen: list[tuple[torch.Tensor, ...]] = []
        hooks = [
            module.register_forward_hook(lambda module, inputs, output: seen.append(output))
            for module in self.model.modules()
            if type(module).__name__.endswith("Router")
        ]
        logits = self.model(torch.tensor([[*PROMPT, *tokens[:-1]]])).logits[0]
        for hook in hooks:
            hook.remove()
        at = slice(len(PROMPT) - 1, None)
        # Most routers give their logits, weights and choice; that of Llama 4 its scores and logits.
        routed = [
            (out[0], out[2]) if len(out) == 3 else (out[1], out[1].topk(self.model.config.num_experts_per_tok).indices)
            for out in seen
        ]
        return logits[at], [(router_logits[at], chosen[at]) for router_logits, chosen in routed]


def _log_scores(logits: torch.Tensor, ids: torch.Tensor, function: ScoreFunction) -> torch.Tensor:
    picked = logits.gather(-1, ids)
    if function is ScoreFunction.SIGMOID:
        return logsigmoid(picked)
    if function is ScoreFunction.SOFTMAX_TOPK:
        return picked.log_softmax(-1)
    return picked - logits.logsumexp(-1, keepdim=True)


def _error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    return float(np.abs(found.astype(np.float64) - expected).max())


async def start(folder: Path, **settings: Any) -> VllmEngine:
    """An engine that exports all it can."""
    options = EngineOptions(max_num_seqs=8, router_export=RouterExport.FULL)
    engine = VllmEngine(folder, options, VllmSettings(kv_cache_bytes=64 << 20, **settings))
    await engine.start()
    return engine


async def measure(family: str, folder: Path) -> Parity:
    """Makes models A and B of a family in `folder`, serves A, and updates to B and to A again."""
    first, other = (Reference(folder / name, family, seed) for seed, name in enumerate("AB"))
    engine = await start(first.folder)
    try:
        layout = engine.info.router_layout
        if layout is None:
            raise ValueError(f"the engine sees no routers in a model of family {family}")

        async def samples_of(reference: Reference) -> Exactness:
            return Exactness.worst(map(reference.compare, await engine.generate(PROMPT, SAMPLING)))

        before = await samples_of(first)
        after = []
        for version, reference in enumerate((other, first), 1):
            await engine.update_weights(version, Files(reference.files))
            after.append(await samples_of(reference))
        return Parity(layout, before, Exactness.worst(after))
    finally:
        await engine.close()


def check_exactness(found: Exactness) -> None:
    assert found.same_topk == 1
    assert found.max_logprob_error < 2e-4  # yarn and latent attention sum in another order
    assert found.max_logit_error < 3e-4
    assert found.max_router_error < 5e-3  # a logit of 8 as float16 is off by 0.002


def check_parity(family: str, found: Parity) -> None:
    """What tests hold a family to: samples, routes and layout, before updates and after."""
    assert found.layout.layer_ids == tuple(range(family in _FIRST_DENSE, LAYERS))
    assert found.layout.score_function == _SCORES.get(family, ScoreFunction.SOFTMAX)
    for exactness in (found.before, found.after_update):
        check_exactness(exactness)


QUICK = {"family": ["qwen3_moe"]}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--family", choices=FAMILIES, action="append", help="only this one; may be repeated")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    families = {}
    for family in arguments.family or FAMILIES:
        spent = cpu_seconds()
        with TemporaryDirectory() as folder:
            found = asyncio.run(measure(family, Path(folder)))
        spent = cpu_seconds() - spent
        families[family] = asdict(found.before) | {"after_update": asdict(found.after_update), "cpu_seconds": spent}
        sys.stderr.write(f"{family}: {families[family]}\n")
    return {"families": families}
