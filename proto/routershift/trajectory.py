"""What a policy did, as numpy arrays: the vocabulary that generation and learning share.

Shapes: T response tokens, L routed layers, K experts activated per token.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from routershift.errors import CorruptDataError, InvalidInputError
from routershift.routing.layout import RouterLayout

# The score of a route that was not recorded. Scores are logarithms of probabilities, so never above 0.
MISSING_LOG_SCORE = 1.0


class FinishReason(StrEnum):
    STOP = "stop"
    LENGTH = "length"
    ABORTED = "aborted"


class RouterExport(StrEnum):
    """How much of its routers generation exports with each token; each includes the one before."""

    NONE = "none"
    IDS = "ids"
    TOPK = "topk"
    FULL = "full"


class ScoreDtype(StrEnum):
    """How log-scores travel: 2 bytes each with an error of at most 2^-11 of their size, or 1 byte; see
    `routershift.routing.score_code`."""

    FLOAT16 = "float16"
    UINT8 = "uint8"


@dataclass(frozen=True, slots=True)
class RouterTrace:
    """The experts that were activated for each response token, and their log-scores.

    Row t is read at the position whose hidden state predicts response token t: the same alignment as the
    log-probs. A missing route has `MISSING_LOG_SCORE` in all its K scores; a trace without scores misses none.
    """

    layout: RouterLayout
    expert_ids: NDArray[Any]  # [T, L, K] uint8 up to 256 experts, else uint16
    log_scores: NDArray[np.float16] | None  # [T, L, K]; None: only ids were exported
    logits: NDArray[np.float16] | None = None  # [T, L, E], before any correction bias; only in a full export

    @property
    def scores(self) -> NDArray[np.float16]:
        """`log_scores`. Raises InvalidInputError where only ids were exported."""
        if self.log_scores is None:
            raise InvalidInputError("router_trace.log_scores is absent; set generation.router_export to topk")
        return self.log_scores

    @property
    def missing(self) -> NDArray[np.bool_]:
        """[T, L]: True where no route was recorded."""
        if self.log_scores is None:
            return np.zeros(self.expert_ids.shape[:2], dtype=np.bool_)
        missing: NDArray[np.bool_] = (self.log_scores == MISSING_LOG_SCORE).all(axis=-1)
        return missing

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        return sum(array.nbytes for array in (self.expert_ids, self.log_scores, self.logits) if array is not None)


def check_trace(trace: RouterTrace) -> None:
    """Raises CorruptDataError where recorded routes are none that a router can have made.

    A route that is missing may hold any ids. A router activates K different experts, so an id that a token has twice
    was not recorded: replaying it would weigh one expert twice and leave another out.
    """
    ids, experts = trace.expert_ids, trace.layout.num_experts
    if ids.size == 0:
        return
    if (largest := int(ids.max())) >= experts:
        raise CorruptDataError(f"router_trace.expert_ids holds {largest}; the layout has {experts} experts")
    recorded = ~trace.missing
    scores = trace.log_scores
    if scores is not None and not np.isfinite(scores).all():
        raise CorruptDataError("router_trace.log_scores is not finite, so no log-probability; expected finite and <= 0")
    if scores is not None and (scores[recorded] > 0).any():
        raise CorruptDataError("router_trace.log_scores holds a value that is no log-probability; expected <= 0")
    if trace.layout.top_k > 1 and recorded.any() and not ids[recorded].any():
        raise CorruptDataError(
            "router_trace.expert_ids is all zero: K > 1 distinct experts were activated, so nothing was recorded"
        )
    ordered = np.sort(ids, axis=-1)
    twice = (ordered[..., 1:] == ordered[..., :-1]).any(axis=-1) & recorded
    if twice.any():
        token, layer = np.argwhere(twice)[0].tolist()
        raise CorruptDataError(
            f"router_trace.expert_ids of token {token}, layer {layer} is {ids[token, layer].tolist()}; "
            "a router activates K different experts"
        )


@dataclass(frozen=True, slots=True)
class VersionSpan:
    """Consecutive tokens sampled from one version of the policy."""

    version: int
    tokens: int


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """The N most likely tokens at each of T positions, most likely first, under the distribution sampled from.

    Where truncation leaves fewer than N tokens, the rest have the lowest finite float32.
    """

    token_ids: NDArray[np.int32]  # [T, N]
    logprobs: NDArray[np.float32]  # [T, N]


class SpecialToken(NamedTuple):
    """A special token of a response, which its text leaves out."""

    position: int  # the character of the text before which it stood; the length of the text where it came last
    text: str


@dataclass(frozen=True, slots=True)
class Completion:
    """One sampled response and what the behaviour policy recorded of it."""

    index: int
    token_ids: NDArray[np.int32]  # [T], an end-of-sequence token included
    logprobs: NDArray[np.float32]  # [T], under the distribution really sampled from
    versions: tuple[VersionSpan, ...]  # cover T
    finish_reason: FinishReason | None  # None: a piece of a stream that goes on
    router_trace: RouterTrace | None  # None: dense model, not asked for, or not the last piece
    text: str = ""
    top_logprobs: TopLogprobs | None = None  # None: not asked for
    special_tokens: tuple[SpecialToken, ...] = ()  # those that the text leaves out


def spans_between(starts: Sequence[tuple[int | str, int]], begin: int, end: int) -> tuple[VersionSpan, ...]:
    """The versions of tokens [begin, end), from pairs of a version and the first token that was sampled from it."""
    ends = [start for _, start in starts[1:]] + [end]
    return tuple(
        VersionSpan(int(version), min(stop, end) - max(start, begin))
        for (version, start), stop in zip(starts, ends, strict=True)
        if max(start, begin) < min(stop, end)
    )


def spans_of(versions: NDArray[np.int64]) -> tuple[VersionSpan, ...]:
    """Run-length code of one version per token [T]."""
    if versions.size == 0:
        return ()
    starts = np.flatnonzero(np.diff(versions, prepend=versions[0] - 1))
    lengths = np.diff(starts, append=versions.size)
    return tuple(VersionSpan(int(versions[s]), int(n)) for s, n in zip(starts, lengths, strict=True))


def versions_of(spans: tuple[VersionSpan, ...]) -> NDArray[np.int64]:
    """[T]: the inverse of `spans_of`."""
    return np.repeat(
        np.array([s.version for s in spans], dtype=np.int64), np.array([s.tokens for s in spans], dtype=np.int64)
    )
