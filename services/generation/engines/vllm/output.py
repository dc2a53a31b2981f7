"""Between this engine's types and vLLM's: requests out, completions back.

Nothing here imports vLLM before it is running.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.trajectory import Completion, FinishReason, RouterExport, RouterTrace, TopLogprobs, spans_between
from services.generation.engines.base import EngineSampling
from services.generation.engines.vllm.rows import unpack_rows
from shared.errors import PreconditionError

# Where a request carries its stop strings, in `SamplingParams.extra_args`: see `vllm_stop`.
STOP = "stop"

_FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH, "abort": FinishReason.ABORTED}
_LOWEST = np.finfo(np.float32).min


def to_layout(model: Path, described: tuple[list[int], int, int, str] | None) -> RouterLayout | None:
    """The layout in what the worker says of its routers: layer ids, experts, experts per token and score function.

    Raises:
        PreconditionError: nobody here knows how these routers score.
    """
    if described is None:
        return None
    layer_ids, num_experts, top_k, score_function = described
    if score_function not in set(ScoreFunction):
        raise PreconditionError(
            f"the routers of model folder {model} score with {score_function!r}; "
            f"supported are {', '.join(ScoreFunction)}"
        )
    return RouterLayout(tuple(layer_ids), num_experts, top_k, ScoreFunction(score_function))


def to_params(sampling: EngineSampling, index: int, stop_ids: Sequence[int], *, delta: bool) -> Any:
    """vLLM's `SamplingParams` of sample `index`.

    Args:
        stop_ids: that end any response of the model.
        delta: whether outputs come piece by piece.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        max_tokens=sampling.max_tokens,
        seed=None if sampling.seed is None else (sampling.seed + index) % 2**64,
        stop_token_ids=[*stop_ids, *sampling.stop_token_ids],
        extra_args={STOP: list(sampling.stop)} if sampling.stop else None,
        logprobs=sampling.logprobs,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA if delta else RequestOutputKind.FINAL_ONLY,
        skip_clone=True,  # made for this request alone
    )


def to_completion(
    output: Any,
    index: int,
    first: int,
    starts: list[tuple[str, int]],
    layout: RouterLayout | None,
    export: RouterExport,
    top: int,
) -> Completion:
    """One `CompletionOutput` of vLLM, whose first token is token `first` of sample `index`.

    Args:
        starts: pairs of a version and the first token that was sampled from it, in order; none without a token.
        layout: of the routers; None for a dense model.
        top: how many of the most likely tokens were asked for.

    Raises:
        PreconditionError: the sample has ended, and there is not exactly one router row for each of its tokens.
    """
    end = first + len(output.token_ids)
    ended = output.finish_reason is not None
    logprobs = output.logprobs
    trace = None
    if ended and layout is not None and export is not RouterExport.NONE:
        trace = unpack_rows(output.routed_experts, layout, export, end)
    return Completion(
        index=index,
        token_ids=np.array(output.token_ids, dtype=np.int32),
        # Of the entries of a position, the sampled token's is the first.
        logprobs=np.array([logprobs.logprobs[at] for at in logprobs.start_indices], dtype=np.float32),
        versions=spans_between(starts, first, end) if starts else (),
        finish_reason=_FINISH_REASONS[output.finish_reason] if ended else None,
        router_trace=trace,
        top_logprobs=_most_likely(logprobs, top) if top else None,
    )


def _most_likely(flat: Any, top: int) -> TopLogprobs:
    """From vLLM's `FlatLogprobs`: at each position the sampled token, then the `top` most likely ones in order.

    Where vLLM has merged pieces that nobody fetched in time, a position has each token once, with its rank.
    """
    kept: list[int] = []
    for begin, end in zip(flat.start_indices, flat.end_indices, strict=True):
        if end - begin > top:
            kept += range(begin + 1, begin + 1 + top)
        else:
            kept += sorted(range(begin, end), key=flat.ranks.__getitem__)
    ids = np.array(flat.token_ids, dtype=np.int32)[kept]
    logprobs = np.array(flat.logprobs, dtype=np.float32)[kept]
    return TopLogprobs(ids.reshape(-1, top), np.maximum(logprobs, _LOWEST).reshape(-1, top))


def plausible(trace: RouterTrace) -> bool:
    """Whether each token went to as many experts as the layout says: what was never written names one of them twice."""
    ids = np.sort(trace.expert_ids, axis=-1)
    distinct = bool((ids[..., 1:] != ids[..., :-1]).all())
    return distinct and (trace.log_scores is None or bool(np.isfinite(trace.log_scores).all()))
