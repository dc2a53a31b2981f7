"""The tokens of one episode as they come: what the model sampled, and what it was given in between."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from routershift.trajectory import Completion, FinishReason, Role, RouterTrace, Segment, Trajectory, VersionSpan
from shared.errors import CorruptDataError


class Transcript:
    """What an episode consists of so far. Token ids stay as they were sampled or given: none is made from text."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._ids = list(prompt)
        self._segments: list[Segment] = []
        self._turns: list[Completion] = []
        self._given: list[int] = []

    @property
    def token_ids(self) -> list[int]:
        """The prompt and all that followed: what the next turn of the model is sampled from."""
        return list(self._ids)

    @property
    def segments(self) -> Sequence[Segment]:
        return self._segments

    @property
    def turns(self) -> int:
        """How often the model spoke."""
        return len(self._turns)

    @property
    def sampled_tokens(self) -> int:
        """Tokens of all turns of the model."""
        return sum(turn.token_ids.size for turn in self._turns)

    def add_turn(self, completion: Completion) -> None:
        """Appends what the model sampled from `token_ids`. Without a token it is no turn, and is left out."""
        if not completion.token_ids.size:
            return
        self._segments.append(Segment(Role.ASSISTANT, completion.token_ids.size, True, completion.text))
        self._turns.append(completion)
        self._ids += completion.token_ids.tolist()

    def add_given(self, token_ids: Sequence[int], role: Role, text: str = "") -> None:
        """Appends what somebody else said; nothing where there are no tokens."""
        if token_ids:
            self._segments.append(Segment(role, len(token_ids), False, text))
            self._given += token_ids
            self._ids += token_ids

    def reward_turn(self, reward: float) -> None:
        """Adds to what the last turn of the model has earned."""
        last = max(i for i, segment in enumerate(self._segments) if segment.is_sampled)
        segment = self._segments[last]
        self._segments[last] = replace(segment, reward=(segment.reward or 0.0) + reward)

    def trajectory(self, sample: int, finish_reason: FinishReason | None = None) -> Trajectory:
        """The trajectory of the episode, without what was given after the last turn of the model.

        Args:
            sample: its index in the group.
            finish_reason: default: that of the last turn.

        Raises:
            CorruptDataError: the model has not sampled anything, or only some of its turns have router traces.
        """
        if not self._turns:
            raise CorruptDataError("an episode has no token of the model; expected at least one turn")
        end = 1 + max(i for i, segment in enumerate(self._segments) if segment.is_sampled)
        segments = self._segments[:end]
        given = sum(segment.tokens for segment in segments if not segment.is_sampled)
        last = self._turns[-1]
        completion = Completion(
            index=sample,
            token_ids=np.concatenate([turn.token_ids for turn in self._turns]),
            logprobs=np.concatenate([turn.logprobs for turn in self._turns]),
            versions=_joined_spans([span for turn in self._turns for span in turn.versions]),
            finish_reason=last.finish_reason if finish_reason is None else finish_reason,
            router_trace=_joined_traces([turn.router_trace for turn in self._turns]),
            text=last.text,
            special_tokens=last.special_tokens,
        )
        is_one_response = len(segments) == 1 and segments[0].reward is None
        return Trajectory(
            completion, () if is_one_response else tuple(segments), np.array(self._given[:given], np.int32)
        )


def _joined_spans(spans: Sequence[VersionSpan]) -> tuple[VersionSpan, ...]:
    """One span where one version sampled on across turns."""
    return tuple(
        VersionSpan(version, sum(span.tokens for span in same))
        for version, same in groupby(spans, key=lambda span: span.version)
    )


def _joined_traces(traces: Sequence[RouterTrace | None]) -> RouterTrace | None:
    """One row for each sampled token, of all turns; None for a dense model."""
    present = [trace for trace in traces if trace is not None]
    if len(present) != len(traces):
        if present:
            raise CorruptDataError(f"{len(present)} of {len(traces)} turns have a router trace; expected all or none")
        return None
    if any(trace.is_coded for trace in present):  # by replicas whose settings differ
        present = [trace.coded() for trace in present]
    scores = [trace.log_scores for trace in present if trace.log_scores is not None]
    layers = [trace.layers for trace in present if trace.layers is not None]
    if layers and len({trace.expert_ids.shape[1] for trace in present}) > 1:
        raise CorruptDataError(
            "turns have routes of different numbers of layers; expected one generation.router_layers"
        )
    logits = [trace.logits for trace in present if trace.logits is not None]
    return RouterTrace(
        layout=present[0].layout,
        expert_ids=np.concatenate([trace.expert_ids for trace in present]),
        log_scores=np.concatenate(scores) if len(scores) == len(present) else None,
        logits=np.concatenate(logits) if len(logits) == len(present) else None,
        layers=np.concatenate(layers) if layers else None,
    )
