"""The head: log-probs and entropies of response tokens, without the logits of all of them at once.

With a vocabulary of 151,936 entries the logits of one token take 0.6 MB in float32, and autograd keeps several tensors
of that size for the backward pass. Here one chunk of tokens is done at a time. Where there is more than one, the
backward pass computes their logits again: a third more arithmetic of the head, which does a tenth of a large model's.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from transformers import PreTrainedModel

from services.learner.distributed.ranks import Ranks
from services.learner.model.attention import Attention

log = logging.getLogger(__name__)

_PROBE = (-3.0, -0.5, 0.25, 40.0)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked of a forward pass."""

    rows: Tensor  # [R] int64: the positions of the flattened input that predict a response token
    targets: Tensor  # [R] int64: these tokens
    temperature: float
    entropy_gradient: bool  # False: the entropy carries no gradient


class Head:
    """Has a model give log-probs and entropies in place of logits, where they are asked for.

    They are computed where the model calls its head, as FSDP2 has the weights there for the time of the forward pass.
    They leave the model as its output, since FSDP2 brings the weights back when a gradient comes to an output.
    """

    def __init__(self, model: PreTrainedModel, attention: Attention, ranks: Ranks, chunk_bytes: int) -> None:
        """Comes before the model is sharded; where several ranks share it, `find_scale` comes afterwards.

        Args:
            chunk_bytes: of the float32 logits of a chunk, which has at least one token.
        """
        self._model = model
        self._attention = attention
        self._module: Any = model.get_output_embeddings()
        self._chunk_tokens = max(1, chunk_bytes // (4 * self._module.weight.shape[0]))
        self._wanted: Wanted | None = None
        self._found: Tensor | None = None
        self._plain: Callable[[Tensor], Tensor] = self._module.forward
        self._scale, self._is_chunked = 0.0, False
        self._module.forward = self._forward
        model.register_forward_hook(self._put_out)
        if ranks.size == 1:
            self.find_scale()

    def find_scale(self) -> None:
        """Finds out what the model does with its logits. Collective where the model is sharded."""
        self._scale = _scale(self._model, self._module)
        self._is_chunked = self._scale > 0
        if not self._is_chunked:
            log.warning(
                "model type %s changes its logits by more than a factor: those of all response tokens of a micro-batch "
                "are held at once; see learner.micro_batch_tokens", self._model.config.model_type,
            )  # fmt: skip

    def logprobs(self, input_ids: Tensor, position_ids: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor]:
        """log pi of the targets, and the entropy of their distributions in nats; both [R] float32."""
        self._wanted = wanted
        try:
            output = self._model(**self._attention.inputs(input_ids, position_ids))
        finally:
            self._wanted, self._found = None, None
        if self._is_chunked:
            logprobs, entropy = output.logits
        else:
            logits = output.logits[0].float() / wanted.temperature
            logprobs, entropy = whole_logprobs(logits, wanted.targets, wanted.entropy_gradient)
        return logprobs, entropy if wanted.entropy_gradient else entropy.detach()

    def _forward(self, hidden: Tensor) -> Tensor:
        """In place of the module's own. What it gives is put aside for `_put_out`, or is the logits [1, R, V]."""
        if self._wanted is None:
            return self._plain(hidden)
        wanted, rows = self._wanted, hidden.flatten(0, 1)[self._wanted.rows]
        if not self._is_chunked:
            return self._plain(rows[None])
        self._found = torch.stack(
            chunked_logprobs(
                rows,
                self._module.weight,
                self._module.bias,
                wanted.targets,
                self._scale / wanted.temperature,
                self._chunk_tokens,
                wanted.entropy_gradient,
            )
        )
        return rows.new_zeros(1, 1, 1)

    def _put_out(self, model: PreTrainedModel, inputs: tuple[Any, ...], output: Any) -> Any:
        """A hook that comes before that of FSDP2, which looks for tensors with a gradient in the output."""
        if self._found is not None:
            output.logits = self._found
        return output


def chunked_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    scale: float,
    chunk_tokens: int,
    entropy_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """Log-probs of targets and entropies in nats, [R] float32, of logits `scale * (hidden @ weight.T + bias)`.

    Args:
        hidden: [R, H], of the dtype of `weight`.
        weight: [V, H].
        bias: [V].
        targets: [R] int64, below V.
        chunk_tokens: of the R tokens that are done at a time.
        entropy_gradient: whether a gradient that comes to the entropies goes on to hidden states and weights.
    """
    found: tuple[Tensor, Tensor] = _Logprobs.apply(  # type: ignore[no-untyped-call]  # torch gives it no types
        hidden, weight, bias, targets, scale, chunk_tokens, entropy_gradient
    )
    return found


def whole_logprobs(logits: Tensor, targets: Tensor, entropy_gradient: bool) -> tuple[Tensor, Tensor]:
    """As `chunked_logprobs`, from logits [R, V] float32 that are there, which autograd keeps for the backward pass."""
    scores = logits.log_softmax(dim=-1)
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = -(scores.exp() * scores).sum(dim=-1)
    return scores.gather(1, targets[:, None])[:, 0], entropy


class _Logprobs(torch.autograd.Function):
    """See `chunked_logprobs`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        scale: float,
        chunk_tokens: int,
        entropy_gradient: bool,
    ) -> tuple[Tensor, Tensor]:
        found = hidden.new_empty(3, len(targets), dtype=torch.float32)
        logprobs, entropy, normalizer = found
        chunks = _chunks(len(targets), chunk_tokens)
        only = None
        for chunk in chunks:
            logits = _logits(hidden[chunk], weight, bias, scale)
            largest = logits.amax(dim=1, keepdim=True)
            exponents = logits.sub_(largest).exp()
            total = exponents.sum(dim=1)
            logprobs[chunk] = logits.gather(1, targets[chunk, None])[:, 0] - total.log()
            entropy[chunk] = total.log() - torch.linalg.vecdot(exponents, logits) / total
            normalizer[chunk] = largest[:, 0] + total.log()
            del exponents  # before the next chunk has tensors of its own
            only = logits.sub_(total.log()[:, None]) if len(chunks) == 1 else None
            del logits
        ctx.save_for_backward(hidden, weight, bias, targets, entropy, normalizer, only)
        ctx.scale, ctx.chunk_tokens, ctx.entropy_gradient = scale, chunk_tokens, entropy_gradient
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_logprobs: Tensor, of_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, entropy, normalizer, only = ctx.saved_tensors
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        to_hidden = torch.empty_like(hidden) if needs_hidden else None
        # Sums over chunks are float32 whatever the weights are, as those within one matrix product.
        to_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        to_bias = torch.zeros_like(bias, dtype=torch.float32) if needs_bias else None
        for chunk in _chunks(len(targets), ctx.chunk_tokens):
            scores = only
            if scores is None:
                scores = _logits(hidden[chunk], weight, bias, ctx.scale).sub_(normalizer[chunk, None])
            of_scores = of_logprobs[chunk, None]
            # With p = softmax(z): d log p_t / dz = [. = t] - p, and d entropy / dz = -p (log p + entropy).
            if ctx.entropy_gradient:
                to_logits = (scores + entropy[chunk, None]).mul_(of_entropy[chunk, None]).add_(of_scores).neg_()
                to_logits.mul_(scores.exp())
            else:
                to_logits = scores.exp().mul_(-of_scores)
            del scores
            to_logits.scatter_add_(1, targets[chunk, None], of_scores)
            if ctx.scale != 1:
                to_logits.mul_(ctx.scale)
            if to_bias is not None:
                to_bias.add_(to_logits.sum(dim=0))
            to_logits = to_logits.to(weight.dtype)
            if to_hidden is not None:
                torch.mm(to_logits, weight, out=to_hidden[chunk])
            if to_weight is not None and weight.dtype == torch.float32:
                to_weight.addmm_(to_logits.T, hidden[chunk])
            elif to_weight is not None:
                to_weight.add_(to_logits.T @ hidden[chunk])
            del to_logits  # before the next chunk has tensors of its own
        return (
            to_hidden,
            None if to_weight is None else to_weight.to(weight.dtype),
            None if to_bias is None else to_bias.to(bias.dtype),
            None,
            None,
            None,
            None,
        )


def _chunks(tokens: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, tokens, size)]


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """[R, V] float32."""
    logits = linear(hidden, weight, bias).float()
    return logits if scale == 1 else logits.mul_(scale)


@torch.no_grad()
def _scale(model: PreTrainedModel, head: Any) -> float:
    """The positive factor by which the model multiplies what its head gives; 0 where it does something else."""
    forward, probe = head.forward, torch.tensor([[_PROBE]], device=model.device)
    head.forward = lambda hidden: probe.clone()
    try:
        token = torch.tensor([[1]], device=model.device)
        output: Tensor = model(input_ids=token, position_ids=token - 1, use_cache=False).logits
    finally:
        head.forward = forward
    if output.shape != probe.shape:
        return 0.0
    factors = output / probe
    is_factor = torch.allclose(factors, factors[..., :1].expand_as(factors), rtol=1e-5) and bool(factors[0, 0, 0] > 0)
    return float(factors[0, 0, 0]) if is_factor else 0.0
