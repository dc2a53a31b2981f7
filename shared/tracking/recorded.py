"""Samples from the messages that travel: what generation and reward recorded of a group."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from routershift import wire
from routershift.trajectory import Segment, VersionSpan, check_segments, versions_of
from routershift.v1 import trajectory_pb2 as pb
from shared.errors import CorruptDataError
from shared.tracking.sample import Sample, Tokens

# The text that each of some tokens adds.
Pieces = Callable[[Sequence[int]], tuple[str, ...]]


def no_pieces(tokens: Sequence[int]) -> tuple[str, ...]:
    """For who has no tokenizer: the text of a response still stands as a whole."""
    return ("",) * len(tokens)


def recorded_samples(
    group: pb.TrajectoryGroup, name: str, step: int, outcome: str, pieces: Pieces = no_pieces
) -> list[Sample]:
    """The samples of a group; what training adds, and texts that generation left out, are None and empty.

    Args:
        name: of the group: PROMPT/ATTEMPT.
        outcome: what became of it, as `Sample.outcome` says.
    """
    return [_sample(group.prompt, trajectory, name, step, outcome, pieces) for trajectory in group.trajectories]


def _sample(prompt: pb.Prompt, trajectory: pb.Trajectory, name: str, step: int, outcome: str, pieces: Pieces) -> Sample:
    completion, score = trajectory.completion, trajectory.score
    tokens = _tokens(completion, pieces)
    return Sample(
        step=step,
        trajectory=f"{name}/{trajectory.id.sample}",
        prompt=prompt.text,
        problem=prompt.problem_id,
        response=completion.text,
        outcome=outcome,
        reward=score.reward if score.HasField("reward") else None,
        verifier=score.verifier or prompt.verifier,
        tokens=tokens,
        parts=dict(score.parts),
        verifier_version=score.verifier_version,
        message=score.error,
        finish_reason=wire.FINISH_REASONS.get(completion.finish_reason) or "",
        layers=tuple(completion.router_trace.layout.layer_ids),
        segments=_segments(trajectory, tokens.ids.size, pieces),
    )


def _segments(trajectory: pb.Trajectory, sampled: int, pieces: Pieces) -> tuple[Segment, ...]:
    """None at all where the message is broken. The text of given tokens is made of them where it was left out."""
    given_ids = np.zeros(0, np.int32)
    try:
        segments = wire.decode_segments(trajectory.segments, trajectory.completion.text)
        if trajectory.HasField("given_token_ids"):
            given_ids = wire.decode_tensor(trajectory.given_token_ids, "trajectory.given_token_ids", "int32", 1)
        check_segments(segments, sampled, given_ids.size)
    except CorruptDataError:
        return ()
    shown, begin = [], 0
    for segment in segments:
        end = begin if segment.is_sampled else begin + segment.tokens
        text = segment.text or "".join(pieces(given_ids[begin:end].tolist()))
        shown.append(replace(segment, text=text))
        begin = end
    return tuple(shown)


def _tokens(completion: pb.Completion, pieces: Pieces) -> Tokens:
    """None at all where the message is broken: its text is still worth reading."""
    try:
        ids = wire.decode_tensor(completion.token_ids, "completion.token_ids", "int32", 1)
        logprobs = wire.decode_tensor(completion.logprobs, "completion.logprobs", "float32", 1)
        versions = versions_of(tuple(VersionSpan(s.version, s.tokens) for s in completion.versions))
        if not ids.size == logprobs.size == versions.size:
            raise CorruptDataError(f"{ids.size} tokens, {logprobs.size} log-probs, {versions.size} versions")
    except CorruptDataError:
        ids, logprobs, versions = np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros(0, np.int64)
    return Tokens(ids=ids, pieces=pieces(ids.tolist()), versions=versions, logprobs=logprobs)
