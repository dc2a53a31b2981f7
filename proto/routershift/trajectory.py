"""What a policy did, as numpy arrays: the vocabulary that generation and learning share.

Shapes: T response tokens, L routed layers, K experts activated per token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from routershift.errors import CorruptDataError, InvalidInputError
from routershift.routing import layer_subset, score_code
from routershift.routing.layout import RouterLayout
from routershift.routing.score_code import MISSING_LOG_SCORE


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
    """How log-scores travel: 2 bytes each with an error of at most 2^-11 of their size, or 1 byte.

    `routershift.routing.score_code` has the code of one byte, and what it costs.
    """

    FLOAT16 = "float16"
    UINT8 = "uint8"


@dataclass(frozen=True, slots=True)
class RouterTrace:
    """The experts that were activated for each response token, and their log-scores.

    Row t is read at the position whose hidden state predicts response token t: the same alignment as the
    log-probs. A missing route has `MISSING_LOG_SCORE`, or its code, in all its K scores; a trace without scores misses
    none.
    """

    layout: RouterLayout
    expert_ids: NDArray[Any]  # [T, L, K] uint8 up to 256 experts, else uint16
    log_scores: NDArray[Any] | None  # [T, L, K] float16, or uint8 codes; None: only ids were exported
    logits: NDArray[np.float16] | None = None  # [T, L, E], before any correction bias; only in a full export
    # [T, M]: places of the layers that each token has, in `layout.layer_ids`; then M stands for L above. None: all.
    layers: NDArray[np.uint8] | None = None

    @property
    def scores(self) -> NDArray[np.float16]:
        """[T, L, K]: `log_scores`, decoded if coded. Raises InvalidInputError where only ids were exported."""
        if self.log_scores is None:
            raise InvalidInputError("router_trace.log_scores is absent; set generation.router_export to topk")
        return score_code.decode(self.log_scores) if self.is_coded else self.log_scores

    @property
    def is_coded(self) -> bool:
        """Whether `log_scores` are codes of `routershift.routing.score_code`."""
        return self.log_scores is not None and self.log_scores.dtype == np.uint8

    def coded(self) -> "RouterTrace":
        """The same with its scores as codes of one byte."""
        if self.log_scores is None or self.is_coded:
            return self
        return replace(self, log_scores=score_code.encode(self.log_scores))

    def thinned(self, layers: int, seed: int) -> "RouterTrace":
        """The same with `layers` layers on each token, one of each stratum; itself where it has no more.

        See `routershift.routing.layer_subset`. The same seed draws the same layers.
        """
        tokens, recorded = self.expert_ids.shape[:2]
        if layers >= recorded:
            return self
        places = layer_subset.draw(tokens, recorded, layers, seed)
        at = places[..., None].astype(np.int64)
        return replace(
            self,
            expert_ids=np.take_along_axis(self.expert_ids, at, axis=1),
            log_scores=None if self.log_scores is None else np.take_along_axis(self.log_scores, at, axis=1),
            logits=None if self.logits is None else np.take_along_axis(self.logits, at, axis=1),
            layers=places,
        )

    @property
    def missing(self) -> NDArray[np.bool_]:
        """[T, L]: True where no route was recorded, of those that should be."""
        if self.log_scores is None or score_code.are_log_probabilities(self.log_scores):
            return np.zeros(self.expert_ids.shape[:2], dtype=np.bool_)
        unknown = score_code.MISSING if self.is_coded else MISSING_LOG_SCORE
        missing: NDArray[np.bool_] = (self.log_scores == unknown).all(axis=-1)
        return missing

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays."""
        arrays = self.expert_ids, self.log_scores, self.logits, self.layers
        return sum(array.nbytes for array in arrays if array is not None)


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


class Role(StrEnum):
    """Who speaks in a segment, in the words of chat templates."""

    ASSISTANT = "assistant"
    USER = "user"
    TOOL = "tool"
    SYSTEM = "system"


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of a trajectory that have one origin: the model, or somebody else."""

    role: Role
    tokens: int
    is_sampled: bool  # by the model; text that was put into its mouth is given, though its role is the assistant's
    text: str = ""
    reward: float | None = None  # what the environment gave for this turn, where it rewards turns


@dataclass(frozen=True, slots=True)
class Trajectory:
    """What followed a prompt: T tokens that the model sampled, and G given ones that came from elsewhere.

    Only sampled tokens have log-probs, versions and routes, and only they are trained on.
    """

    completion: Completion  # everything sampled; text, special tokens and finish reason of its last segment
    segments: tuple[Segment, ...] = ()  # cover the T + G tokens in order; empty where the model sampled everything
    given_ids: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))  # [G], in order

    @property
    def sampled_at(self) -> NDArray[np.int64]:
        """[T]: the places of the sampled tokens among all T + G."""
        if not self.segments:
            return np.arange(self.completion.token_ids.size)
        return np.flatnonzero(_is_sampled(self.segments))

    @property
    def token_ids(self) -> NDArray[np.int32]:
        """[T + G], in order; not a copy where the model sampled everything."""
        if not self.segments:
            return self.completion.token_ids
        is_sampled = _is_sampled(self.segments)
        ids = np.empty(is_sampled.size, np.int32)
        ids[is_sampled] = self.completion.token_ids
        ids[~is_sampled] = self.given_ids
        return ids

    @property
    def turns(self) -> tuple[Segment, ...]:
        """What the model said each time that it spoke."""
        if not self.segments:
            return (Segment(Role.ASSISTANT, self.completion.token_ids.size, True, self.completion.text),)
        return tuple(segment for segment in self.segments if segment.is_sampled)

    @property
    def trained_length(self) -> int:
        """Tokens up to the last sampled one: what is given after it teaches nothing."""
        if not self.segments:
            return self.completion.token_ids.size
        last = max(i for i, segment in enumerate(self.segments) if segment.is_sampled)
        return sum(segment.tokens for segment in self.segments[: last + 1])


def check_segments(segments: Sequence[Segment], sampled: int, given: int) -> None:
    """Raises CorruptDataError where segments do not cover these numbers of sampled and of given tokens."""
    for i, segment in enumerate(segments):
        if segment.tokens < 1:
            raise CorruptDataError(f"trajectory.segments[{i}].tokens is {segment.tokens}; expected at least 1")
        if segment.is_sampled and segment.role is not Role.ASSISTANT:
            raise CorruptDataError(
                f"trajectory.segments[{i}].role is {segment.role} of sampled tokens; expected {Role.ASSISTANT}"
            )
        if segment.reward is not None and not (segment.is_sampled and math.isfinite(segment.reward)):
            raise CorruptDataError(
                f"trajectory.segments[{i}].reward is {segment.reward:g}; expected a finite number, of a sampled segment"
            )
    if segments and not any(segment.is_sampled for segment in segments):
        raise CorruptDataError(
            f"trajectory.segments has {len(segments)} entries and none is sampled; expected at least one"
        )
    sampled_by_segments = sum(s.tokens for s in segments if s.is_sampled) if segments else sampled
    if sampled_by_segments != sampled:
        raise CorruptDataError(
            f"trajectory.segments has {sampled_by_segments} sampled tokens; completion.token_ids has {sampled}"
        )
    if (covered := sum(s.tokens for s in segments if not s.is_sampled)) != given:
        raise CorruptDataError(f"trajectory.segments has {covered} given tokens; given_token_ids has {given}")


def _is_sampled(segments: Sequence[Segment]) -> NDArray[np.bool_]:
    """[T + G]"""
    return np.repeat([segment.is_sampled for segment in segments], [segment.tokens for segment in segments])


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
