"""Tiny random models in the layout of Hugging Face, made where a test needs them."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    GlmMoeDsaConfig,
    GlmMoeDsaForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MiniMaxM2Config,
    MiniMaxM2ForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SYMBOLS = ("<pad>", "<eos>", *"0123456789+-*/()=,: ", "?", "!")
VOCABULARY = len(SYMBOLS)
PAD, EOS = 0, 1
EXPERTS, TOP_K, LAYERS = 8, 2, 3
MAX_MODEL_LEN = 256

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 192,
    "max_position_embeddings": MAX_MODEL_LEN,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "bos_token_id": None,
    # Wide enough that two seeds disagree clearly about every token and every route.
    "initializer_range": 0.1,
}
_MOE: dict[str, Any] = {"num_experts": EXPERTS, "num_experts_per_tok": TOP_K, "moe_intermediate_size": 96}
_QWEN3: dict[str, Any] = {"head_dim": 32, "norm_topk_prob": True}
_OLMOE: dict[str, Any] = {"num_experts": EXPERTS, "num_experts_per_tok": TOP_K}
_MIXTRAL: dict[str, Any] = {"num_local_experts": EXPERTS, "num_experts_per_tok": TOP_K, "sliding_window": None}
_MINIMAX: dict[str, Any] = {
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "head_dim": 32,
    "intermediate_size": 96,
    "rotary_dim": 16,
    # Released models have them, and only vLLM reads them.
    "use_routing_bias": True,
    "scoring_func": "sigmoid",
}
_QWEN2: dict[str, Any] = {"shared_expert_intermediate_size": 64}
# Experts come from one of two groups; the first layer is dense.
_GROUPED: dict[str, Any] = {
    "n_routed_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "moe_intermediate_size": 96,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
}
_DEEPSEEK: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 32,
}
# Sparse attention to 8 tokens, chosen anew in the first and the last layer. What is equal is chosen in any order, so
# that nothing may be: scores are 0 where all of few heads have none, or the embedding is that of padding.
_GLM_DSA: dict[str, Any] = {
    "q_lora_rank": 32,
    "index_topk": 8,
    "index_head_dim": 32,
    "index_n_heads": 16,
    "indexer_types": ["full", "shared", "full"],
    "pad_token_id": None,
}
_GPT_OSS: dict[str, Any] = {
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "head_dim": 32,
    "sliding_window": 8,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
_LLAMA4: dict[str, Any] = {
    "num_local_experts": EXPERTS,
    "num_experts_per_tok": TOP_K,
    "head_dim": 32,
    "intermediate_size_mlp": 96,
    "moe_layers": [0, 2],
    "no_rope_layers": [1, 0, 1],
}

# By name: model class, config class, and what differs from the common settings.
_KINDS: dict[str, tuple[type[PreTrainedModel], Any, dict[str, Any]]] = {
    "qwen3_moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig, _MOE | _QWEN3),
    "qwen3_moe_dense_first": (Qwen3MoeForCausalLM, Qwen3MoeConfig, _MOE | _QWEN3 | {"mlp_only_layers": [0]}),
    "qwen3_dense": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen2_moe": (Qwen2MoeForCausalLM, Qwen2MoeConfig, _MOE | _QWEN2),
    "mixtral": (MixtralForCausalLM, MixtralConfig, _MIXTRAL),
    "minimax_m2": (MiniMaxM2ForCausalLM, MiniMaxM2Config, _MINIMAX),
    "olmoe": (OlmoeForCausalLM, OlmoeConfig, _OLMOE),
    "deepseek_v3": (DeepseekV3ForCausalLM, DeepseekV3Config, _GROUPED | _DEEPSEEK),
    "glm4_moe": (Glm4MoeForCausalLM, Glm4MoeConfig, _GROUPED | {"head_dim": 32}),
    "glm_moe_dsa": (GlmMoeDsaForCausalLM, GlmMoeDsaConfig, _GROUPED | _DEEPSEEK | _GLM_DSA),
    "gpt_oss": (GptOssForCausalLM, GptOssConfig, _GPT_OSS),
    "llama4": (Llama4ForCausalLM, Llama4TextConfig, _LLAMA4),
}
KINDS = tuple(_KINDS)
MOE_KINDS = tuple(kind for kind in KINDS if kind != "qwen3_dense")
# What a new model has at zero, and a trained one never.
_ZERO_AT_FIRST = ("bias", "sinks")


def save_model(folder: Path, kind: str = "qwen3_moe", seed: int = 0, **changes: Any) -> Path:
    """Writes a random model of `kind` with its tokenizer, and returns the folder. `changes` go to its config.

    In models with a head of their own, the logit of <eos> is always 0 among others of spread 2, so at temperature 1
    a response of a hundred tokens is common; a high temperature makes it end early.
    """
    torch.manual_seed(seed)
    model_class, config_class, settings = _KINDS[kind]
    model = model_class(config_class(**(_COMMON | settings | changes)))
    if not model.config.tie_word_embeddings:
        with torch.no_grad():
            model.lm_head.weight.normal_(std=0.2)
            model.lm_head.weight[EOS] = 0
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name.endswith(_ZERO_AT_FIRST):
            tensor.data.normal_(std=0.3)
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return folder


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character of `SYMBOLS`."""
    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(SYMBOLS)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
