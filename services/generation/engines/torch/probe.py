"""Proof that the torch engine computes what a model alone does, before it serves it."""

import numpy as np
import torch

from routershift.trajectory import Completion
from services.generation.engines.base import EngineSampling
from services.generation.engines.model_files import OVERFLOW
from services.generation.engines.torch import attention
from services.generation.engines.torch.batch import Batch, Sequence
from services.generation.engines.torch.model import OWN_ATTENTION, Policy
from shared.errors import InvalidInputError, PreconditionError

# Float32 in another order of summation, and one unit in the last place of a float16 score.
_TOLERANCE = 1e-2


def probe(policy: Policy) -> None:
    """Samples a little from two prompts, and holds log-probs and router rows against the model by itself.

    Raises:
        PreconditionError: they differ, or the model cannot run on this cache.
        InvalidInputError: log-probs are not finite, as of weights that overflow.
    """
    kind = policy.model.config.model_type
    sampling = EngineSampling(1, 0.0, 1.0, 0, 3, None)
    batch = Batch(policy, 0, 2, frozenset())
    prompts = ([1], [1, 0, 1])
    batch.running += [Sequence(0, prompt, sampling, np.zeros(3)) for prompt in prompts]
    try:
        with torch.inference_mode():
            batch.begin(0)
            batch.step()
            batch.step()
            sampled = [batch.completion(sequence, 0) for sequence in batch.running]
            errors = [_deviation(policy, *each) for each in zip(prompts, sampled, strict=True)]
    except PreconditionError as error:  # the sampler refuses logits that are not finite
        raise InvalidInputError(OVERFLOW) from error
    except Exception as error:
        raise PreconditionError(f"model_type {kind!r} does not run on the torch engine: {error!r}") from error
    if not max(errors) < _TOLERANCE:
        raise PreconditionError(
            f"model_type {kind!r} does not run on the torch engine: log-probs or router scores are off by {max(errors)}"
        )


def _deviation(policy: Policy, prompt: list[int], greedy: Completion) -> float:
    """Largest error of a greedy sample's log-probs and router rows against one pass of the model's own attention."""
    first, tokens = len(prompt), torch.tensor([*prompt, *greedy.token_ids.tolist()], device=policy.device)
    policy.model.set_attn_implementation(OWN_ATTENTION)
    try:
        logits = policy.model(input_ids=tokens[None, :-1], use_cache=False).logits[0, first - 1 :]
    finally:
        policy.model.set_attn_implementation(attention.NAME)
    expected = logits.float().log_softmax(-1).gather(-1, tokens[first:, None])[:, 0]
    errors = [np.abs(expected.cpu().numpy() - greedy.logprobs).max()]
    trace = greedy.router_trace
    if policy.tap is not None and trace is not None:
        rows = policy.tap.rows(torch.arange(first - 1, len(tokens) - 1, device=policy.device))
        if not np.array_equal(rows["expert_ids"], trace.expert_ids):
            return float("inf")
        for name in rows.keys() - {"expert_ids"}:
            errors.append(np.abs(rows[name] - getattr(trace, name)).max())
    return float(np.max(errors))
