"""Attention of one new token over a cache whose heads several queries share, without a copy of the cache for each."""

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "routershift_grouped"


def _grouped(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    indices: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """transformers' SDPA attention of query [N, heads, new, D] over key and value [N, shared heads, positions, D].

    With one new token, the queries that share a head are as well that head's queries at several positions, all with
    the same mask. transformers repeats keys and values for each of them, as a mask keeps it from SDPA's own sharing.

    Args:
        indices: [N, new, K] the positions that an indexer has picked for each token, in families with sparse attention.

    Returns:
        [N, new, heads, D] and None, as transformers' attention functions do.
    """
    rows, heads, new, width = query.shape
    shared = key.shape[1]
    if indices is not None and attention_mask is not None:
        picked = attention_mask.new_zeros(rows, new, key.shape[2], dtype=torch.bool)
        attention_mask = _only(attention_mask, picked.scatter(-1, indices.long(), True)[:, None])
    if new > 1 or shared == heads:
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )
        return output
    grouped = query.reshape(rows, shared, heads // shared, width)
    attended = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return attended.reshape(rows, 1, heads, value.shape[-1]), None


def _only(mask: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
    """A mask, of booleans or to be added, without what is not picked."""
    if mask.dtype == torch.bool:
        return mask & picked
    return mask.masked_fill(~picked, torch.finfo(mask.dtype).min)


AttentionInterface.register(NAME, _grouped)
