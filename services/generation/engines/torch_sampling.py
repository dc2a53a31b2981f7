"""How the torch engine draws one token for each sequence of a batch."""

import torch

from services.generation.engines.base import EngineSampling
from shared.errors import PreconditionError


def sample(params: list[EngineSampling], uniforms: list[float], logits: torch.Tensor) -> tuple[list[int], list[float]]:
    """One token per row of logits [N, vocabulary], and its log-prob under the distribution it was drawn from.

    Temperature first, then top-k, then top-p over what remains. A row's token is the inverse of its cumulative
    distribution at its uniform number in [0, 1). A greedy row (temperature 0) takes the largest logit and reports its
    log-prob at temperature 1 over the whole vocabulary, as vLLM's `processed_logprobs` does: the distribution really
    sampled from is a point, which tells a learner nothing.

    Raises:
        PreconditionError: the logits hold NaN or infinity, so the weights are broken.
    """
    device, vocabulary = logits.device, logits.shape[-1]
    greedy = [p.temperature == 0 for p in params]
    temperatures = torch.tensor([p.temperature or 1.0 for p in params], device=device)
    logits = logits.float() / temperatures[:, None]
    if any(p.temperature > 0 and (p.top_k > 0 or p.top_p < 1) for p in params):
        top_k = [vocabulary if p.temperature == 0 or p.top_k == 0 else p.top_k for p in params]
        # Rounding may bring a cumulative sum to 1 too early, and top_p = 1 must mean all tokens.
        top_p = [torch.inf if p.temperature == 0 or p.top_p == 1 else p.top_p for p in params]
        logits = _truncate(logits, torch.tensor(top_k, device=device), torch.tensor(top_p, device=device))
    logprobs = logits.log_softmax(-1)
    cumulative = logprobs.double().exp().cumsum(-1)
    total = cumulative[:, -1:]
    if not bool(total.isfinite().all()):
        raise PreconditionError("the policy's logits are not finite: its weights are broken; go back to sound ones")
    at = torch.tensor(uniforms, dtype=torch.float64, device=device)[:, None] * total
    drawn = torch.searchsorted(cumulative, at, right=True)[:, 0]
    tokens = torch.where(torch.tensor(greedy, device=device), logits.argmax(-1), drawn)
    taken = logprobs.gather(-1, tokens[:, None])[:, 0]
    return tokens.tolist(), taken.tolist()


def _truncate(logits: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Minus infinity for all but the top_k [N] largest logits of a row and, of these, the nucleus of mass top_p [N].

    The nucleus is the smallest set of most likely tokens whose mass reaches top_p (arXiv 1904.09751, equation 2).
    """
    ordered, order = logits.sort(descending=True)
    ranks = torch.arange(logits.shape[-1], device=logits.device)
    ordered = ordered.masked_fill(ranks >= top_k[:, None], -torch.inf)
    mass = ordered.softmax(-1)
    above = mass.cumsum(-1) - mass
    ordered = ordered.masked_fill(above >= top_p[:, None], -torch.inf)
    return torch.empty_like(logits).scatter_(-1, order, ordered)
