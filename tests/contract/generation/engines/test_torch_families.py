"""Families on the torch engine: what it follows of their attention, and what it refuses."""

from pathlib import Path

import pytest
import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTJConfig,
    GPTJForCausalLM,
)

from routershift.trajectory import RouterExport
from services.generation.engines.base import EngineOptions, EngineSampling, Files
from services.generation.engines.torch.engine import TorchEngine
from shared.errors import PreconditionError
from tests.bench import parity
from tests.support.models import EOS, VOCABULARY, save_model

SAMPLING = EngineSampling(n=1, temperature=1.0, top_p=1.0, top_k=0, max_tokens=24, seed=1)


def make(folder: Path, export: RouterExport = RouterExport.TOPK) -> TorchEngine:
    return TorchEngine(folder, EngineOptions(max_num_seqs=4, router_export=export))


async def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    config = DeepseekV2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, moe_intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=1, q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=8, eos_token_id=EOS,
    )  # fmt: skip
    DeepseekV2ForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(PreconditionError, match=r"'deepseek_v2'.*qwen3_moe"):
        await make(tmp_path).start()
    plain = make(tmp_path, RouterExport.NONE)
    await plain.start()
    (sample,) = await plain.generate([2, 3], SAMPLING)
    assert sample.router_trace is None
    await plain.close()


async def test_a_family_whose_attention_needs_more_than_this_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="'llama4_text' does not run on the torch engine"):
        await make(save_model(tmp_path, "llama4")).start()


async def test_gpt_oss_follows_updates(tmp_path: Path) -> None:
    first, other = (parity.Reference(tmp_path / name, "gpt_oss", seed) for seed, name in enumerate("AB"))
    engine = make(first.folder, RouterExport.FULL)
    await engine.start()
    for version, model in enumerate((first, other, first)):
        if version:
            await engine.update_weights(version, Files(model.files))
        for sample in await engine.generate(parity.PROMPT, parity.SAMPLING):
            parity.check_exactness(model.compare(sample))
    await engine.close()


async def test_a_soft_cap_is_that_of_the_model(tmp_path: Path) -> None:
    """The engine serves, so its probe has found no other log-probs than those of transformers' own attention."""
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, initializer_range=0.5, pad_token_id=0, attn_logit_softcapping=2.0,
        query_pre_attn_scalar=9, sliding_window=2, eos_token_id=EOS,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    engine = make(tmp_path)
    await engine.start()
    await engine.close()


async def test_a_model_that_takes_no_attention_but_its_own_is_refused(tmp_path: Path) -> None:
    GPTJForCausalLM(
        GPTJConfig(vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=2, rotary_dim=8, eos_token_id=EOS)
    ).save_pretrained(tmp_path)
    with pytest.raises(PreconditionError, match="'gptj' does not run on the torch engine: its code"):
        await make(tmp_path).start()
