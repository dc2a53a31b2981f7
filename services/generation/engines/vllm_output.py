"""From vLLM's outputs to completions."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import PreconditionError
from shared.trajectory import Completion, FinishReason, RouterLayout, RouterTrace, spans_between

_FINISH_REASONS = {"stop": FinishReason.STOP, "length": FinishReason.LENGTH}


def to_completion(
    output: Any, index: int, first: int, starts: list[tuple[str, int]], layout: RouterLayout | None
) -> Completion:
    """One `CompletionOutput` of vLLM, whose first token is token `first` of sample `index`.

    Args:
        starts: pairs of a version and the first token that was sampled from it, in order.
        layout: of the routers; None for a dense model.

    Raises:
        PreconditionError: the sample has ended, and there is not exactly one router row for each of its tokens.
    """
    end = first + len(output.token_ids)
    ended = output.finish_reason is not None
    return Completion(
        index=index,
        token_ids=np.array(output.token_ids, dtype=np.int32),
        logprobs=np.array(output.logprobs.logprobs, dtype=np.float32),
        versions=spans_between(starts, first, end),
        finish_reason=_FINISH_REASONS[output.finish_reason] if ended else None,
        router_trace=unpack_rows(output.routed_experts, layout, end) if ended and layout is not None else None,
    )


def unpack_rows(rows: NDArray[np.uint16] | None, layout: RouterLayout, tokens: int) -> RouterTrace:
    """From rows [tokens, L, 2K]: expert ids, then the bits of their float16 log-scores.

    Raises:
        PreconditionError: there is not exactly one row for each token.
    """
    if rows is None or len(rows) != tokens:
        raise PreconditionError(
            f"vLLM handed over {0 if rows is None else len(rows)} router rows for {tokens} tokens; "
            "use the pinned vLLM release, or engine 'torch'"
        )
    ids: Any = rows[..., : layout.top_k].astype(layout.id_dtype)
    scores = np.ascontiguousarray(rows[..., layout.top_k :]).view(np.float16)
    return RouterTrace(layout, ids, scores)
