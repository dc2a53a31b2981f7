"""The vLLM engine on each family of MoE models that RouterShift names: samples, routes and updates."""

import asyncio
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    GptOssConfig,
    MixtralConfig,
    OlmoeConfig,
    Qwen2MoeConfig,
)

from services.generation.engines import vllm as vllm_engine
from services.generation.engines.base import EngineOptions, EngineSampling
from services.generation.engines.vllm import VllmEngine
from services.generation.engines.vllm_settings import VllmSettings
from shared.errors import PreconditionError, UnavailableError
from shared.trajectory import Completion, ScoreFunction
from tests.models import EOS, EXPERTS, LAYERS, MAX_MODEL_LEN, TOP_K, VOCABULARY

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.vllm,
    pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed: make install ENGINE=vllm"),
]

PROMPT = [2, 9, 4, 21, 17]
SAMPLING = EngineSampling(4, 1.0, 1.0, 0, 32, 1)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 3,  # vLLM's attention on CPU knows no head of 24
    "num_key_value_heads": 1,
    "intermediate_size": 96,
    "num_experts_per_tok": TOP_K,
    "max_position_embeddings": MAX_MODEL_LEN,
    "eos_token_id": EOS,
    "bos_token_id": None,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
_DEEPSEEK: dict[str, Any] = {
    "n_routed_experts": EXPERTS,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "n_group": 2,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "num_key_value_heads": 3,
    # The only latent attention that vLLM has kernels for on CPU.
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
_CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "qwen2_moe": (Qwen2MoeConfig, {"num_experts": EXPERTS, "moe_intermediate_size": 64}),
    "mixtral": (MixtralConfig, {"num_local_experts": EXPERTS, "sliding_window": None}),
    "olmoe": (OlmoeConfig, {"num_experts": EXPERTS}),
    "deepseek_v3": (DeepseekV3Config, _DEEPSEEK),
    "gpt_oss": (GptOssConfig, {"num_local_experts": EXPERTS, "head_dim": 32}),
}


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
        self.files = sorted(folder.glob("*.safetensors"))

    def check(self, sample: Completion, function: ScoreFunction) -> None:
        """Asserts log-probs within 1e-4 (yarn and latent attention sum in another order), the same routes, scores."""
        routed: list[tuple[torch.Tensor, ...]] = []
        hooks = [
            module.register_forward_hook(lambda module, inputs, output: routed.append(output))
            for module in self.model.modules()
            if type(module).__name__.endswith("Router")
        ]
        with torch.no_grad():
            logits = self.model(torch.tensor([[*PROMPT, *sample.token_ids[:-1]]])).logits[0, len(PROMPT) - 1 :]
        for hook in hooks:
            hook.remove()
        tokens = torch.from_numpy(sample.token_ids).long()
        expected = logits.log_softmax(-1).gather(-1, tokens[:, None])[:, 0]
        np.testing.assert_allclose(sample.logprobs, expected, atol=1e-4)
        assert sample.router_trace is not None
        assert sample.router_trace.expert_ids.shape == (len(tokens), len(routed), TOP_K)
        for layer, (router_logits, _, chosen) in enumerate(routed):
            ids = torch.from_numpy(sample.router_trace.expert_ids[:, layer]).long()
            at = slice(len(PROMPT) - 1, None)
            assert torch.equal(ids.sort(-1).values, chosen[at].sort(-1).values)
            picked = router_logits[at].gather(-1, ids)
            scores = {
                ScoreFunction.SOFTMAX: picked - router_logits[at].logsumexp(-1, keepdim=True),
                ScoreFunction.SIGMOID: logsigmoid(picked),
                ScoreFunction.SOFTMAX_TOPK: picked.log_softmax(-1),
            }[function]
            recorded = sample.router_trace.scores[:, layer].astype(np.float32)
            np.testing.assert_allclose(recorded, scores, rtol=1e-3, atol=1e-4)


async def start(folder: Path) -> VllmEngine:
    engine = VllmEngine(folder, EngineOptions(max_num_seqs=8), VllmSettings(kv_cache_bytes=64 << 20))
    await engine.start()
    return engine


@pytest.mark.parametrize("family", ["qwen2_moe", "mixtral", "olmoe", "deepseek_v3"])
async def test_family(tmp_path: Path, family: str) -> None:
    references = {name: Reference(tmp_path / name, family, seed) for seed, name in enumerate("AB")}
    engine = await start(tmp_path / "A")
    layout = engine.info.router_layout
    assert layout is not None
    deepseek = family == "deepseek_v3"
    assert layout.layer_ids == tuple(range(deepseek, LAYERS))
    assert layout.score_function == (ScoreFunction.SIGMOID if deepseek else ScoreFunction.SOFTMAX)
    for version, name in enumerate("ABAB"):
        if version:
            await engine.update_weights(version, references[name].files)
        for sample in await engine.generate(PROMPT, SAMPLING):
            references[name].check(sample, layout.score_function)
    await engine.close()


async def test_gpt_oss_samples_but_is_not_updated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference, other = (Reference(tmp_path / name, "gpt_oss", seed) for seed, name in enumerate("AB"))
    engine = await start(tmp_path / "A")
    assert engine.info.router_layout is not None
    assert engine.info.router_layout.score_function == ScoreFunction.SOFTMAX_TOPK
    with pytest.raises(PreconditionError, match="gpt_oss"):
        await engine.update_weights(1, other.files)
    for sample in await engine.generate(PROMPT, SAMPLING):
        reference.check(sample, ScoreFunction.SOFTMAX_TOPK)

    # Were it not refused, the update would be seen to lose weights: nobody ever samples from half a model.
    monkeypatch.setattr(vllm_engine, "_NOT_UPDATABLE", set())
    waiting = asyncio.create_task(engine.generate(PROMPT, replace(SAMPLING, n=400)))
    await asyncio.sleep(0)
    with pytest.raises(UnavailableError, match=r"got no weights.*experts"):
        await engine.update_weights(1, other.files)
    with pytest.raises(UnavailableError):
        await waiting
    with pytest.raises(UnavailableError, match="halfway"):
        await engine.generate(PROMPT, SAMPLING)
    assert not await engine.healthy()
    await engine.close()
