"""Attention over packed sequences: which implementation of it a model has, and what it reads.

A mask of all pairs of tokens in a row costs memory and time that grow with the square of the row, and most of it says
that two sequences do not see each other. Varlen attention has no mask: one flattened row, and the borders in it.
transformers hands the borders from the model's arguments to the attention function; families whose attention takes
nothing else from a mask say so by `_supports_flash_attn`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from services.learner.distributed.context_parallel import Context, divided
from services.learner.distributed.division import width_of
from services.learner.settings import AttnImplementation, LearnerSettings
from shared.errors import PreconditionError

log = logging.getLogger(__name__)

SEGMENTS = "routershift_segments"  # in transformers' registry, which has no mask function of this name: none is made
_AVAILABLE = {"flash_attention_3": is_flash_attn_3_available, "flash_attention_2": is_flash_attn_2_available}
_LAYER_TYPES = {"full_attention", "sliding_attention"}

Runs = tuple[tuple[int, int], ...]  # (sequences, tokens of each), one run after the other in the flattened row


@dataclass(frozen=True, slots=True)
class Attention:
    """The implementation of a model, with the arguments that it needs."""

    name: str  # SEGMENTS, or transformers' name
    context: Context | None = None  # the ranks that divide a row; wants `is_flat`

    @property
    def is_flat(self) -> bool:
        """Whether rows are read as one, with borders in place of a mask."""
        return self.name == SEGMENTS or self.is_flash

    @property
    def is_flash(self) -> bool:
        return self.name in _AVAILABLE

    def set_on(self, model: PreTrainedModel) -> None:
        """Before the model is on its device. Flash attention runs on GPUs only: until then segments take its place."""
        model.set_attn_implementation(SEGMENTS if self.is_flash else self.name)

    def set_flash_on(self, model: PreTrainedModel) -> None:
        """Raises PreconditionError where transformers cannot use it on this machine."""
        try:
            model.set_attn_implementation(self.name)
        except (ValueError, ImportError) as error:
            raise PreconditionError(
                f'learner.attn_implementation comes to {self.name}: {error}; set "segments" in its place'
            ) from error

    def inputs(self, input_ids: Tensor, position_ids: Tensor) -> dict[str, Any]:
        """The model's arguments for packed rows, whose output is that of [1, N * W] where they are read as one.

        Where ranks divide the row, the tokens are those of this rank, and what fills it up is a sequence of its own.

        Args:
            input_ids: [N, W] int64.
            position_ids: [N, W] int64, 0 where a sequence begins, as each row does.
        """
        if not self.is_flat:
            return {"input_ids": input_ids, "position_ids": position_ids, "use_cache": False}
        ids, positions = input_ids.flatten(), position_ids.flatten()
        inputs: dict[str, Any] = {"use_cache": False}
        if self.context is not None:
            filling = torch.arange(-len(ids) % self.context.size, device=ids.device)
            ids, positions = pad(ids, (0, len(filling))), torch.cat((positions, filling))
            inputs["context"] = self.context
        borders = pad((positions == 0).nonzero()[:, 0], (0, 1), value=len(positions))
        lengths = borders.diff().tolist()
        if self.context is not None:
            ids, positions = self.context.own(ids), self.context.own(positions)
        inputs |= {"input_ids": ids[None], "position_ids": positions[None]}
        if not self.is_flash:
            return inputs | {"segments": _runs(lengths)}
        borders, longest = borders.int(), max(lengths)
        of_keys = {"cu_seq_lens_k": borders, "max_length_k": longest}
        return inputs | {"cu_seq_lens_q": borders, "max_length_q": longest} | of_keys

    def logits(self, model: PreTrainedModel, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """[N * W, V] of packed rows, whoever computes them. Args as `inputs`."""
        logits: Tensor = model(**self.inputs(input_ids, position_ids)).logits.flatten(0, 1)
        if self.context is None:
            return logits
        width = width_of(input_ids.numel(), self.context.size)
        places = torch.arange(width, device=logits.device) + self.context.rank * width
        return self.context.whole(logits, places, self.context.size * width)[: input_ids.numel()]


def choose(model: PreTrainedModel, settings: LearnerSettings) -> Attention:
    """What `learner.attn_implementation` comes to; the same on every rank, as weights have no part in it.

    Raises:
        PreconditionError: the model, the device or what is installed does not allow what is wanted.
    """
    own, wanted = Attention(_masked(model)), settings.attn_implementation
    if wanted == "masked":
        return own
    if reason := _needs_mask(model):
        kind = model.config.model_type
        if wanted != "auto":
            raise _refusal(wanted, f"model_type {kind!r} needs its mask: {reason}", 'set "auto" or "masked"')
        log.info("model_type %s attends over rows with a mask: %s", kind, reason)
        return own
    on_gpu = torch.device(settings.device).type == "cuda"
    if wanted == "auto":
        usable = [name for name, is_available in _AVAILABLE.items() if _fits(model, name) and is_available()]
        return Attention(usable[0] if usable and on_gpu and settings.precision == "bfloat16" else SEGMENTS)
    if wanted == "segments":
        return Attention(SEGMENTS)
    if not on_gpu:
        raise _refusal(wanted, f"it runs on GPUs, and learner.device is {settings.device!r}", 'set "segments"')
    if settings.precision != "bfloat16":
        fix = 'set learner.precision = "bfloat16", or "segments"'
        raise _refusal(wanted, f"it has no {settings.precision}", fix)
    if not _fits(model, wanted):
        names = ", ".join(model._compatible_flash_implementations)
        raise _refusal(wanted, f"model_type {model.config.model_type!r} takes {names} alone", 'set "segments"')
    if not _AVAILABLE[wanted]():
        package = "flash-attn" if wanted == "flash_attention_2" else "flash-attn-3"
        raise _refusal(wanted, f"the package {package} is not installed", 'install it, or set "segments"')
    return Attention(wanted)


def _refusal(wanted: AttnImplementation, reason: str, fix: str) -> PreconditionError:
    return PreconditionError(f'learner.attn_implementation is "{wanted}": {reason}; {fix}')


def _masked(model: PreTrainedModel) -> str:
    """transformers' own choice, but for a soft cap on the scores, which its SDPA leaves out in silence."""
    name: str = model.config._attn_implementation
    has_cap = getattr(model.config.get_text_config(), "attn_logit_softcapping", None)
    return "eager" if has_cap else name


def _needs_mask(model: PreTrainedModel) -> str:
    """Why borders are not enough for this model; "" where they are."""
    config = model.config.get_text_config()
    others = sorted(set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES)
    if others:
        return f"its layers have {', '.join(others)}"
    if getattr(config, "index_topk", None):
        return "an indexer reads it to pick the tokens that are attended to"
    if not model._supports_flash_attn or not model._can_set_attn_implementation():
        return "transformers cannot give its attention the borders of sequences"
    return ""


def _fits(model: PreTrainedModel, name: str) -> bool:
    """Whether transformers would take this flash attention for the model, and not another one in its place."""
    return name in (getattr(model, "_compatible_flash_implementations", None) or _AVAILABLE)


def _runs(lengths: Sequence[int]) -> Runs:
    runs: list[tuple[int, int]] = []
    for length in lengths:
        if runs and runs[-1][1] == length:
            runs[-1] = (runs[-1][0] + 1, length)
        else:
            runs.append((1, length))
    return tuple(runs)


def segments_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    segments: Runs = (),
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention of query [N, H, T, D] over key and value [N, H', T, D], each sequence within itself.

    Args:
        dropout: of transformers' signature; must be 0, as the learner sets it.
        sliding_window: tokens that one attends to, itself among them.
        softcap: scores s become softcap * tanh(s / softcap).
        s_aux: [H], attention sinks: the score of one more position, whose value is 0.
        segments: runs of sequences of one length, which fill the flattened N * T; none where each row is a sequence.

    Returns:
        [N, T, H, D] and None.

    Raises:
        ValueError: the model gives a mask, a bias or a dropout, which would be left out.
    """
    given = {"attention_mask": attention_mask, "dropout": dropout or None}
    given |= {name: others.get(name) for name in ("position_bias", "indices")}
    if unknown := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"attention in segments knows no {', '.join(unknown)}")
    rows, tokens = query.shape[0], query.shape[2]
    runs = segments or ((rows, tokens),)
    # On CPUs torch's kernel takes up to five times as long in bfloat16 as in float32.
    dtype = torch.float32 if query.device.type == "cpu" else query.dtype
    sizes = [sequences * length for sequences, length in runs]
    parts = [torch.split(x.transpose(1, 2).flatten(0, 1).to(dtype), sizes) for x in (query, key, value)]
    outputs = []
    for (sequences, length), *run in zip(runs, *parts, strict=True):
        q, k, v = (x.reshape(sequences, length, *x.shape[1:]).transpose(1, 2) for x in run)
        window = sliding_window if sliding_window is not None and sliding_window < length else None
        if softcap is None and s_aux is None:
            attended = _attend(q, k, v, scaling, window)
        else:
            attended = _attend_by_scores(q, k, v, scaling, window, softcap, s_aux)
        outputs.append(attended.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs).to(query.dtype).reshape(rows, tokens, -1, value.shape[-1]), None


def _attend(q: Tensor, k: Tensor, v: Tensor, scaling: float | None, window: int | None) -> Tensor:
    """[n, H, L, D] of query [n, H, L, D] and of key and value [n, H', L, D]."""
    seen = None if window is None else _seen(q, window)
    return scaled_dot_product_attention(
        q, k, v, attn_mask=seen, scale=scaling, is_causal=seen is None, enable_gqa=q.shape[1] != k.shape[1]
    )


def _attend_by_scores(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scaling: float | None,
    window: int | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """As `_attend`, with what torch's kernels lack; the scores [n, H, L, L] are kept for the backward pass."""
    heads, width = q.shape[1], q.shape[-1]
    k, v = (x.repeat_interleave(heads // x.shape[1], dim=1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * (width**-0.5 if scaling is None else scaling)
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    scores = scores.float().masked_fill(~_seen(q, window), -torch.inf)
    if sinks is not None:
        scores = torch.cat((scores, sinks.float()[:, None, None].expand(*scores.shape[:-1], 1)), dim=-1)
    return scores.softmax(dim=-1)[..., : k.shape[2]].to(v.dtype) @ v


def _seen(q: Tensor, window: int | None) -> Tensor:
    """[L, L] bool: which positions (columns) each position attends to."""
    at = torch.arange(q.shape[2], device=q.device)
    back = at[:, None] - at
    return (back >= 0) & (back < (window or len(at)))


AttentionInterface.register(SEGMENTS, divided(segments_attention))
for _flash in _AVAILABLE:  # transformers' own, where no ranks divide a row
    AttentionInterface.register(_flash, divided(flash_attention_forward))
