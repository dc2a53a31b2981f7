"""Attention of new tokens over the cache, and the masks for it.

Masks follow what transformers asks of them, so that layers may have windows of their own. Of one new token, no key is
copied for each query of a shared head, and what is masked is hardly read.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function

NAME = "routershift_grouped"

_BLOCK_ROWS = 4
_CALL_POSITIONS = 1024  # of the cache, which take as long to read as a call of the attention function takes
_SCORES = 1 << 26  # kept at once where scores are written out, 256 MiB in float32


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


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | torch.Tensor = 0,
    mask_function: Callable[..., torch.Tensor] = causal_mask_function,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> torch.Tensor:
    """transformers' mask [N, 1, new, positions] bool, of rows that may be at different positions.

    Args:
        q_offset: the position of the first new token: of all rows, or [N] of each.
        mask_function: which positions a position attends to, by (row, head, position, position attended to).
    """
    rows = torch.arange(batch_size, device=device)[:, None, None, None]
    first = torch.as_tensor(q_offset, device=device).reshape(-1, 1, 1, 1)
    at, keys = first + torch.arange(q_length, device=device)[:, None], torch.arange(kv_length, device=device)
    return mask_function(rows, torch.zeros_like(rows), at, keys).expand(batch_size, 1, q_length, kv_length)


def _grouped(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    indices: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention of query [N, heads, new, D] over key and value [N, shared heads, positions, D].

    Args:
        attention_mask: [N, 1, new, positions] of `_mask`, which has the windows of layers as well.
        indices: [N, new, K] the positions that an indexer has picked for each token, in families with sparse attention.

    Returns:
        [N, new, heads, D] and None, as transformers' attention functions do.

    Raises:
        ValueError: the model asks for no mask, so that nothing says where its rows are.
    """
    if attention_mask is None:
        raise ValueError("its attention has no mask of transformers' interface")
    if indices is not None:
        picked = torch.zeros(len(query), query.shape[2], key.shape[2], dtype=torch.bool, device=query.device)
        attention_mask = attention_mask & picked.scatter(-1, indices.long(), True)[:, None]
    blocks = _blocks.get()
    if not blocks:
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
    mask: torch.Tensor,
    scaling: float | None,
    s_aux: torch.Tensor | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """[N, new, heads, D], of tensors as `_grouped` has them.

    With one new token, the queries that share a head are as well that head's queries at several positions, all with
    the same mask. transformers repeats keys and values for each of them, as a mask keeps it from SDPA's own sharing.

    Args:
        s_aux: [heads], attention sinks: the score of one more position, whose value is 0.
        softcap: scores s become softcap * tanh(s / softcap).
    """
    rows, heads, new, width = query.shape
    shared = key.shape[1]
    if s_aux is not None or softcap is not None:
        step = max(1, _SCORES // (rows * heads * key.shape[2]))
        parts = zip(torch.split(query, step, dim=2), torch.split(mask, step, dim=2), strict=True)
        return torch.cat([_by_scores(q, key, value, seen, scaling, s_aux, softcap) for q, seen in parts], dim=1)
    if new > 1 or shared == heads:
        output: torch.Tensor = sdpa_attention_forward(module, query, key, value, mask, scaling=scaling, **kwargs)[0]
        return output
    grouped = query.reshape(rows, shared, heads // shared, width)
    attended = scaled_dot_product_attention(grouped, key, value, attn_mask=mask, scale=scaling)
    return attended.reshape(rows, 1, heads, value.shape[-1])


def _by_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    s_aux: torch.Tensor | None,
    softcap: float | None,
) -> torch.Tensor:
    """As `_attend`, with what SDPA lacks."""
    rows, heads, new, width = query.shape
    shared, positions = key.shape[1:3]
    grouped = query.reshape(rows, shared, heads // shared * new, width)
    scores = grouped @ key.transpose(-1, -2) * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    scores = scores.view(rows, shared, -1, new, positions).masked_fill(~mask[:, :, None], -torch.inf)
    if s_aux is not None:
        sinks = s_aux.view(shared, -1, 1, 1).expand(*scores.shape[:-1], 1)
        scores = torch.cat((scores, sinks), dim=-1)
    weights = scores.softmax(-1)[..., :positions].reshape(rows, shared, -1, positions)
    return (weights @ value).view(rows, heads, new, value.shape[-1]).transpose(1, 2)


AttentionInterface.register(NAME, _grouped)
AttentionMaskInterface.register(NAME, _mask)
