"""Attention of one new token over the cache: no copy for each query of a shared head, no reading of what is masked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "routershift_grouped"

_BLOCK_ROWS = 4
_CALL_POSITIONS = 1024  # of the cache, which take as long to read as a call of the attention function takes


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of a batch."""

    first: int
    end: int
    positions: int  # of the cache, that the longest of them attends to


_blocks: ContextVar[Sequence[Block]] = ContextVar("blocks", default=())


def blocks_of(lengths: Sequence[int]) -> list[Block]:
    """The blocks in which rows of such lengths attend; none where one call for all of them is as fast.

    The cache is one tensor as long as the longest sequence. Were all rows to read that much, one long response would
    make each token of the short ones as expensive as its own.
    """
    blocks = [
        Block(first, min(first + _BLOCK_ROWS, len(lengths)), max(lengths[first : first + _BLOCK_ROWS]))
        for first in range(0, len(lengths), _BLOCK_ROWS)
    ]
    read = sum((block.end - block.first) * block.positions for block in blocks)
    saved = len(lengths) * max(lengths) - read
    return blocks if saved > len(blocks) * _CALL_POSITIONS else []


@contextmanager
def attending(blocks: Sequence[Block]) -> Iterator[None]:
    """A decoding step whose rows attend in these blocks."""
    token = _blocks.set(blocks)
    try:
        yield
    finally:
        _blocks.reset(token)


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
    rows, _, new, _ = query.shape
    if indices is not None and attention_mask is not None:
        picked = attention_mask.new_zeros(rows, new, key.shape[2], dtype=torch.bool)
        attention_mask = _only(attention_mask, picked.scatter(-1, indices.long(), True)[:, None])
    blocks = _blocks.get()
    if not blocks or attention_mask is None:
        return _attend(module, query, key, value, attention_mask, scaling, **kwargs), None
    parts = [
        _attend(
            module,
            query[block.first : block.end],
            key[block.first : block.end, :, : block.positions],
            value[block.first : block.end, :, : block.positions],
            attention_mask[block.first : block.end, ..., : block.positions],
            scaling,
            **kwargs,
        )
        for block in blocks
    ]
    return torch.cat(parts), None


def _attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None,
    **kwargs: Any,
) -> torch.Tensor:
    """[N, new, heads, D], of tensors as `_grouped` has them."""
    rows, heads, new, width = query.shape
    shared = key.shape[1]
    if new > 1 or shared == heads:
        output: torch.Tensor = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **kwargs
        )[0]
        return output
    grouped = query.reshape(rows, shared, heads // shared, width)
    attended = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return attended.reshape(rows, 1, heads, value.shape[-1])


def _only(mask: torch.Tensor, picked: torch.Tensor) -> torch.Tensor:
    """A mask, of booleans or to be added, without what is not picked."""
    if mask.dtype == torch.bool:
        return mask & picked
    return mask.masked_fill(~picked, torch.finfo(mask.dtype).min)


AttentionInterface.register(NAME, _grouped)
