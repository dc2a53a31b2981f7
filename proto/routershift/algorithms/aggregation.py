"""What a token's term weighs in the loss of a minibatch.

Token weights are shares of the whole minibatch, so the sum does not depend on how it was cut into micro-batches or
spread over ranks. Shapes: B responses, T tokens of the longest.
"""

from dataclasses import dataclass

from torch import Tensor

from routershift.algorithms.choices import Aggregation


@dataclass(frozen=True, slots=True)
class Totals:
    """Sizes of the whole minibatch: all micro-batches of all ranks, dropped tokens included."""

    responses: int
    tokens: int
    max_response_tokens: int  # the longest response that could have been sampled


def token_weights(mask: Tensor, aggregation: Aggregation, totals: Totals) -> Tensor:
    """What each token weighs in the loss, [B, T] float32, 0 on padding. N responses, |y| tokens of one.

    response_mean: 1 / (N |y|) (arXiv 2402.03300, equation 3). token_mean: 1 / sum of all |y| (DAPO, arXiv
    2503.14476, equation 8). fixed_length: 1 / (N times the longest that a response may get), so that no length is
    favoured (Dr. GRPO, arXiv 2503.20783, section 3.2).
    """
    tokens = mask.float()
    if aggregation == "response_mean":
        return tokens / (totals.responses * tokens.sum(dim=1, keepdim=True))
    if aggregation == "token_mean":
        return tokens / totals.tokens
    return tokens / (totals.responses * totals.max_response_tokens)
