"""Configs of well-known models, so that a plan needs no download: the sizes of their public config.json.

Each name is the last part of the model's name on the Hugging Face Hub, in lower case. What a config leaves out is the
default of transformers. A further model is a further entry.
"""

from collections.abc import Mapping
from typing import Any


def _qwen3(**sizes: int | bool) -> Mapping[str, Any]:
    return {"model_type": "qwen3", "head_dim": 128, "vocab_size": 151936, "num_key_value_heads": 8, **sizes}


def _qwen3_moe(**sizes: int) -> Mapping[str, Any]:
    own = {"num_experts": 128, "num_experts_per_tok": 8, "head_dim": 128, "num_key_value_heads": 4, **sizes}
    return {"model_type": "qwen3_moe", "vocab_size": 151936, "tie_word_embeddings": False, **own}


def _gpt_oss(layers: int, experts: int) -> Mapping[str, Any]:
    return {"model_type": "gpt_oss", "num_hidden_layers": layers, "num_local_experts": experts}


CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "qwen3-4b": _qwen3(
        hidden_size=2560,
        num_hidden_layers=36,
        num_attention_heads=32,
        intermediate_size=9728,
        tie_word_embeddings=True,
    ),
    "qwen3-30b-a3b": _qwen3_moe(
        hidden_size=2048, num_hidden_layers=48, num_attention_heads=32, moe_intermediate_size=768
    ),
    "qwen3-235b-a22b": _qwen3_moe(
        hidden_size=4096, num_hidden_layers=94, num_attention_heads=64, moe_intermediate_size=1536
    ),
    "olmoe-1b-7b-0924": {
        "model_type": "olmoe",
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "intermediate_size": 1024,
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "vocab_size": 50304,
        "tie_word_embeddings": False,
    },
    "mixtral-8x7b-v0.1": {
        "model_type": "mixtral",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 32000,
        "tie_word_embeddings": False,
    },
    "gpt-oss-20b": _gpt_oss(layers=24, experts=32),
    "gpt-oss-120b": _gpt_oss(layers=36, experts=128),
    "deepseek-v3": {"model_type": "deepseek_v3"},
    "glm-4.5-air": {
        "model_type": "glm4_moe",
        "hidden_size": 4096,
        "num_hidden_layers": 46,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 10944,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 1,
        "attention_bias": True,
        "vocab_size": 151552,
        "tie_word_embeddings": False,
    },
}
