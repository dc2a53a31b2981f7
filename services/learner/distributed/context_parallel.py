"""Context parallelism: the ranks of a group divide a row of tokens and, in attention, the heads.

Ulysses (arXiv 2309.14509): before attention an all-to-all gives each rank all tokens of the row for a part of the
heads, after it another gives the tokens back. In between stands any attention function that is told the borders of
sequences, with its windows, soft caps and sinks, which are of single heads. All else in a decoder is of single tokens.

Every rank of a group then has the log-probs of the whole row, so that each computes the whole loss, whatever tokens
the objective takes together; its gradient goes on through the tokens of the rank alone. Ranks sum their gradients.

Shapes: T tokens of a row, C ranks, P = T / C tokens of a rank, H heads, H' of them for keys and values, D values of a
head.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from transformers import PreTrainedModel

from routershift.routing.expert_load import ExpertUse
from routershift.routing.families import why_refused
from routershift.routing.shift import Shift
from services.learner.data.collate import Part
from services.learner.distributed.division import check_heads, key_copies
from services.learner.distributed.settings import MeshShape
from shared.errors import PreconditionError

_BY_LENGTH = ("dynamic", "longrope")  # rope types whose frequencies follow from the longest position of a pass


class Context:
    """The ranks that divide a row. All call the same methods in the same order."""

    rank: int
    size: int

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def own(self, row: Tensor) -> Tensor:
        """[T] to [P]: what this rank has of a row of a multiple of C tokens."""
        return row.chunk(self.size)[self.rank]

    def exchange(self, parts: Tensor) -> Tensor:
        """All-to-all of [C, ...]: entry i goes to rank i, and what comes back at i is from rank i."""
        exchanged: Tensor = _Exchange.apply(parts, self._group)  # type: ignore[no-untyped-call]  # torch gives it no types
        return exchanged

    def whole(self, values: Tensor, places: Tensor, count: int) -> Tensor:
        """[n, ...] of this rank to [count, ...] of all, the same bits on every rank.

        Its gradient is that of the values of this rank alone: every rank is to make the same of the whole.

        Args:
            places: [n] int64, different on all ranks, below `count`.
        """
        whole: Tensor = _Whole.apply(values, places, count, self._group)  # type: ignore[no-untyped-call]  # as above
        return whole

    def shift(self, shift: Shift, part: Part) -> Shift:
        """The router shift of all response tokens, from that of the tokens of this rank."""
        factors = torch.stack((shift.log_gamma, shift.measured), dim=1)
        log_gamma, measured = self.whole(factors, part.tokens, part.of_tokens).unbind(dim=1)
        traced = None if shift.traced is None else self.whole(shift.traced, part.traced, part.of_traced)
        return Shift(log_gamma, measured, self._sum(shift.layers), traced)

    def use(self, use: ExpertUse) -> ExpertUse:
        """What routers chose for all response tokens, from what they chose on this rank."""
        return ExpertUse(self._sum(use.loads), self._sum(use.overlaps))

    def _sum(self, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total, group=self._group)
        return total


def check(model: PreTrainedModel, is_flat: bool, shape: MeshShape) -> None:
    """Whether ranks can divide the rows of a model.

    Args:
        is_flat: whether its attention reads a pass as one row with borders.

    Raises:
        PreconditionError: its attention needs a mask, or its positions are not of single tokens.
        InvalidInputError: its heads cannot be divided.
    """
    if shape.context == 1:
        return
    config, fix = model.config.get_text_config(), "set learner.mesh.context = 1"
    set_to, kind = f"learner.mesh.context is {shape.context}", model.config.model_type
    if why := why_refused(kind):
        raise PreconditionError(f"{set_to}; rows of model_type {kind!r} cannot be divided: {why}; {fix}")
    if not is_flat:
        raise PreconditionError(
            f"{set_to}; the attention of model_type {kind!r} reads a mask, and ranks divide rows with borders alone; "
            f'{fix}, or learner.attn_implementation = "auto" where it is "masked"'
        )
    if found := [name for name in _BY_LENGTH if name in _rope_types(config)]:
        raise PreconditionError(
            f"{set_to}; model_type {kind!r} has rope_type {found[0]!r}, whose frequencies follow from the longest "
            f"position of a pass, and each rank has another; {fix}"
        )
    heads = config.num_attention_heads
    check_heads(shape.context, heads, getattr(config, "num_key_value_heads", None) or heads)


def divided(function: Callable[..., tuple[Tensor, Any]]) -> Callable[..., tuple[Tensor, Any]]:
    """An attention function of transformers that ranks can divide: with `context` among its arguments, it exchanges.

    Its query [1, H, P, D], key and value [1, H', P, D] and output [1, P, H, D] are then of the tokens of this rank, and
    `function` has all tokens of H / C heads, in the order of the row.
    """

    @wraps(function)
    def attention(
        module: torch.nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        context: Context | None = None,
        **arguments: Any,
    ) -> tuple[Tensor, Any]:
        if context is None:
            return function(module, query, key, value, attention_mask, **arguments)
        heads, tokens = query.shape[1:3]
        check_heads(context.size, heads, key.shape[1])
        copies = key_copies(context.size, key.shape[1])
        key, value = (x.repeat_interleave(copies, dim=1) for x in (key, value))
        # One exchange for all three: of each token, what its heads have on one rank stands side by side.
        parts = [x[0].reshape(context.size, -1, *x.shape[2:]).transpose(1, 2) for x in (query, key, value)]
        whole = context.exchange(torch.cat([part.flatten(2) for part in parts], dim=2)).flatten(0, 1)
        sizes = [part.shape[2] * part.shape[3] for part in parts]
        shares = [
            share.reshape(-1, *part.shape[2:]).transpose(0, 1)[None].to(part.dtype)
            for share, part in zip(torch.split(whole, sizes, dim=1), parts, strict=True)
        ]
        if (sinks := arguments.get("s_aux")) is not None:  # [H], of single heads
            arguments["s_aux"] = context.own(sinks)
        attended, weights = function(module, *shares, attention_mask, **arguments)
        back = context.exchange(attended[0].reshape(context.size, tokens, *attended.shape[2:]))
        return back.transpose(0, 1).flatten(1, 2)[None], weights

    return attention


class _Exchange(torch.autograd.Function):
    """See `Context.exchange`. What went to another rank has its gradient there: it comes back by the same exchange."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_to_all(parts, group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(gradient, ctx.group), None


class _Whole(torch.autograd.Function):
    """See `Context.whole`. One rank has each value and the others 0, so no sum is rounded."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, places: Tensor, count: int, group: dist.ProcessGroup) -> Tensor:
        ctx.save_for_backward(places)
        whole = values.new_zeros(count, *values.shape[1:]).index_copy_(0, places, values)
        dist.all_reduce(whole, group=group)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (places,) = ctx.saved_tensors
        return gradient.index_select(0, places), None, None, None


def _all_to_all(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    given = parts.contiguous()
    got = torch.empty_like(given)
    dist.all_to_all_single(got, given, group=group)
    return got


def _rope_types(config: Any) -> set[str]:
    """The rope types of all layers: a config has one, or one for each type of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    each = [rope, *(value for value in rope.values() if isinstance(value, dict))]
    return {str(one["rope_type"]) for one in each if "rope_type" in one}
