"""How the torch engine draws one token for each sequence of a batch.

Shapes: N sequences, V tokens in the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from services.generation.engines.base import EngineSampling
from shared.errors import PreconditionError

_LOWEST = float(np.finfo(np.float32).min)


@dataclass(frozen=True, slots=True)
class Drawn:
    """One token for each of N sequences."""

    tokens: list[int]
    logprobs: NDArray[np.float32]  # [N], under the distribution drawn from
    # Ids and log-probs, each [N, M], most likely first; M is the most that a sequence asked for. None: nobody did.
    top: tuple[NDArray[np.int32], NDArray[np.float32]] | None


class Sampler:
    """Draws for the same sequences step after step.

    Temperature first, then min-p, then top-k, then top-p over what remains, in vLLM's order. A sequence's token is the
    inverse of its cumulative distribution at its uniform number in [0, 1). A greedy one (temperature 0) takes the
    largest logit and reports its log-prob at temperature 1 over the whole vocabulary, as vLLM's
    `processed_logprobs` does: the distribution really sampled from is a point, which tells a learner nothing.
    """

    def __init__(self, params: Sequence[EngineSampling], device: torch.device) -> None:
        self._greedy = torch.tensor([p.temperature == 0 for p in params], device=device)
        self._all_greedy = all(p.temperature == 0 for p in params)
        self._temperatures = torch.tensor([[p.temperature or 1.0] for p in params], device=device)
        random = [p for p in params if p.temperature > 0]
        # Each is None where it drops no token of any sequence. Nothing is dropped where min_p is 0 and top_k or top_p
        # infinite: rounding may bring a cumulative sum to 1 too early, and top_p = 1 must mean all tokens.
        self._min_p = self._top_k = self._top_p = None
        if any(p.min_p > 0 for p in random):
            self._min_p = torch.tensor([[p.min_p if p.temperature else 0.0] for p in params], device=device)
        if any(p.top_k > 0 or p.top_p < 1 for p in random):
            self._top_k = torch.tensor(
                [[p.top_k if p.top_k and p.temperature else torch.inf] for p in params], device=device
            )
            self._top_p = torch.tensor(
                [[p.top_p if p.top_p < 1 and p.temperature else torch.inf] for p in params], device=device
            )
        self._most = max((p.logprobs for p in params), default=0)

    def draw(self, logits: torch.Tensor, uniforms: list[float]) -> Drawn:
        """From logits [N, V] of any float type, by N numbers in [0, 1).

        Raises:
            PreconditionError: the logits hold NaN or infinity, so the weights are broken.
        """
        logits = logits.float() / self._temperatures
        if self._min_p is not None:
            # The probability of a token over that of the most likely one is the exponential of their distance.
            logits = logits.masked_fill(logits < logits.amax(-1, keepdim=True) + self._min_p.log(), -torch.inf)
        if self._top_k is not None and self._top_p is not None:
            logits = _truncate(logits, self._top_k, self._top_p)
        logprobs = logits.log_softmax(-1)
        if bool(logprobs[:, 0].isnan().any()):  # one bad logit makes all of its row NaN
            raise PreconditionError("the policy's logits are not finite: its weights are broken; go back to sound ones")
        tokens = logits.argmax(-1)
        if not self._all_greedy:
            cumulative = logprobs.double().exp().cumsum(-1)
            at = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None] * cumulative[:, -1:]
            tokens = torch.where(self._greedy, tokens, torch.searchsorted(cumulative, at, right=True)[:, 0])
        taken = logprobs.gather(-1, tokens[:, None])[:, 0]
        return Drawn(tokens.tolist(), taken.cpu().numpy(), self._top(logprobs))

    def _top(self, logprobs: torch.Tensor) -> tuple[NDArray[np.int32], NDArray[np.float32]] | None:
        if not self._most:
            return None
        values, ids = logprobs.topk(self._most, dim=-1)
        return ids.int().cpu().numpy(), values.clamp(min=_LOWEST).cpu().numpy()


def _truncate(logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Minus infinity for all but the top_k [N, 1] largest of logits [N, V] and, of these, the nucleus of mass top_p
    [N, 1].

    The nucleus is the smallest set of most likely tokens whose mass reaches top_p (arXiv 1904.09751, equation 2).
    """
    ordered, order = logits.sort(descending=True)
    ranks = torch.arange(logits.shape[-1], device=logits.device)
    ordered = ordered.masked_fill(ranks >= top_k, -torch.inf)
    mass = ordered.softmax(-1)
    above = mass.cumsum(-1) - mass
    ordered = ordered.masked_fill(above >= top_p, -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, ordered)
