"""Packed rows, and attention of other kinds than most families have."""

from typing import Any, Self

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import Gemma2Config, Gemma2ForCausalLM, PreTrainedModel, modeling_flash_attention_utils

from tests.support.models import VOCABULARY

LENGTHS = (11, 11, 7, 5, 12)
MASKED = ("glm_moe_dsa", "llama4")  # kinds whose attention reads more from the mask than borders


def packed(lengths: tuple[int, ...] = LENGTHS) -> tuple[Tensor, Tensor]:
    ids = torch.randint(2, VOCABULARY, (1, sum(lengths)), generator=torch.Generator().manual_seed(0))
    return ids, torch.cat([torch.arange(length) for length in lengths])[None]


def gemma() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, initializer_range=0.5, pad_token_id=0, attn_logit_softcapping=2.0,
        query_pre_attn_scalar=9, sliding_window=4,
    )  # fmt: skip
    return Gemma2ForCausalLM(config).eval()


class Varlen:
    """The varlen function of flash-attn, by its signature and on the CPU, and what it was asked."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    @classmethod
    def in_place_of_flash_attention(cls, patch: pytest.MonkeyPatch) -> Self:
        """Transformers believes that flash-attn is installed, and calls what is returned."""
        made = cls()
        patch.setattr(PreTrainedModel, "_flash_attn_can_dispatch", lambda *args, **kwargs: True)
        patch.setattr(modeling_flash_attention_utils, "_loaded_implementation", None)
        functions = (None, made.__call__, None, None, None)
        patch.setattr(modeling_flash_attention_utils, "_lazy_imports", lambda *args, **kwargs: functions)
        return made

    def __call__(
        self, q: Tensor, k: Tensor, v: Tensor, cu_seqlens_q: Tensor, cu_seqlens_k: Tensor, max_seqlen_q: int,
        max_seqlen_k: int, dropout_p: float = 0.0, softmax_scale: float | None = None, causal: bool = False,
        window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0, deterministic: bool = False,
    ) -> Tensor:  # fmt: skip
        asked = locals()
        self.calls.append({name: asked[name] for name in ("cu_seqlens_q", "max_seqlen_q", "max_seqlen_k", "causal")})
        self.calls[-1]["heads"] = q.shape[1]
        assert torch.equal(cu_seqlens_q, cu_seqlens_k)
        outputs = []
        for begin, end in zip(cu_seqlens_q[:-1].tolist(), cu_seqlens_q[1:].tolist(), strict=True):
            at = torch.arange(end - begin)
            back = at[:, None] - at
            seen = (back >= 0) & (back <= (window_size[0] if window_size[0] >= 0 else end))
            query, key, value = (x[begin:end].transpose(0, 1)[None] for x in (q, k, v))
            outputs.append(
                scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=softmax_scale, enable_gqa=True)[0]
            )
        return torch.cat(outputs, dim=1).transpose(0, 1)
