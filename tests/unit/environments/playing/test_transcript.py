"""The tokens of an episode become one trajectory."""

from dataclasses import replace

import numpy as np
import pytest

from routershift import wire
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.trajectory import Completion, FinishReason, Role, RouterTrace, Segment, VersionSpan
from routershift.v1 import trajectory_pb2 as pb
from services.environments.playing.transcript import Transcript
from shared.errors import CorruptDataError

LAYOUT = RouterLayout((0, 2), 8, 2, ScoreFunction.SOFTMAX)


def turn(
    ids: list[int], versions: list[tuple[int, int]], text: str = "", trace: bool = True, finish: str = "stop"
) -> Completion:
    """A turn whose log-probs and routes say which token they are of."""
    tokens = np.array(ids, np.int32)
    expert_ids = np.stack([tokens % 8, (tokens + 1) % 8], -1)[:, None, :].repeat(2, axis=1).astype(np.uint8)
    scores = np.full(expert_ids.shape, -0.5, np.float16)
    return Completion(
        index=0,
        token_ids=tokens,
        logprobs=(-tokens / 100).astype(np.float32),
        versions=tuple(VersionSpan(*span) for span in versions),
        finish_reason=FinishReason(finish),
        router_trace=RouterTrace(LAYOUT, expert_ids, scores) if trace else None,
        text=text,
    )


def test_turns_and_what_is_given_between_them_alternate() -> None:
    episode = Transcript([1, 2])
    episode.add_turn(turn([10, 11], [(3, 2)], "6*7?"))
    episode.reward_turn(0.25)
    episode.add_given([50, 51, 52], Role.TOOL, "42")
    assert episode.token_ids == [1, 2, 10, 11, 50, 51, 52]
    episode.add_turn(turn([12, 13, 14], [(3, 1), (4, 2)], "It is 42."))
    episode.reward_turn(0.5)
    episode.reward_turn(0.5)
    episode.add_given([60], Role.USER, "thanks")  # after the last turn: teaches nothing

    trajectory = episode.trajectory(5)
    assert trajectory.segments == (
        Segment(Role.ASSISTANT, 2, True, "6*7?", 0.25),
        Segment(Role.TOOL, 3, False, "42"),
        Segment(Role.ASSISTANT, 3, True, "It is 42.", 1.0),
    )
    assert trajectory.token_ids.tolist() == [10, 11, 50, 51, 52, 12, 13, 14]
    completion = trajectory.completion
    assert completion.index == 5
    assert completion.token_ids.tolist() == [10, 11, 12, 13, 14]
    assert completion.logprobs.tolist() == pytest.approx([-0.10, -0.11, -0.12, -0.13, -0.14])
    assert completion.versions == (VersionSpan(3, 3), VersionSpan(4, 2))
    assert completion.router_trace is not None
    assert completion.router_trace.expert_ids[:, 0, 0].tolist() == [2, 3, 4, 5, 6]
    assert completion.text == "It is 42."

    decoded = wire.decode_trajectory(wire.encode_trajectory(pb.TrajectoryId(sample=5), trajectory))
    assert decoded.segments == trajectory.segments
    assert decoded.token_ids.tolist() == trajectory.token_ids.tolist()
    assert (episode.turns, episode.sampled_tokens) == (2, 5)


def test_one_turn_alone_is_a_trajectory_without_segments() -> None:
    episode = Transcript([1])
    only = turn([10, 11], [(0, 2)], "x")
    episode.add_turn(only)
    trajectory = episode.trajectory(0)
    assert trajectory.segments == ()
    assert trajectory.given_ids.size == 0
    assert trajectory.completion.token_ids.tolist() == only.token_ids.tolist()


def test_the_reason_of_the_end_may_be_the_episodes_own() -> None:
    episode = Transcript([1])
    episode.add_turn(turn([10], [(0, 1)]))
    assert episode.trajectory(0).completion.finish_reason is FinishReason.STOP
    assert episode.trajectory(0, FinishReason.LENGTH).completion.finish_reason is FinishReason.LENGTH


def test_a_turn_without_tokens_is_none() -> None:
    episode = Transcript([1])
    episode.add_turn(turn([], []))
    episode.add_given([], Role.TOOL)
    assert (episode.turns, list(episode.segments)) == (0, [])
    with pytest.raises(CorruptDataError, match="no token of the model"):
        episode.trajectory(0)


def test_routes_of_some_turns_alone_are_refused() -> None:
    episode = Transcript([1])
    episode.add_turn(turn([10], [(0, 1)]))
    episode.add_turn(turn([11], [(0, 1)], trace=False))
    with pytest.raises(CorruptDataError, match="1 of 2 turns have a router trace"):
        episode.trajectory(0)


def test_a_dense_model_has_no_trace() -> None:
    episode = Transcript([1])
    episode.add_turn(turn([10], [(0, 1)], trace=False))
    episode.add_turn(turn([11], [(0, 1)], trace=False))
    assert episode.trajectory(0).completion.router_trace is None


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_refused_where_it_is_read(reward: float) -> None:
    episode = Transcript([1])
    episode.add_turn(turn([10], [(0, 1)]))
    episode.add_given([5], Role.TOOL)
    episode.add_turn(turn([11], [(0, 1)]))
    trajectory = episode.trajectory(0)
    segments = (replace(trajectory.segments[0], reward=reward), *trajectory.segments[1:])
    message = wire.encode_trajectory(pb.TrajectoryId(), replace(trajectory, segments=segments))
    with pytest.raises(CorruptDataError, match=r"segments\[0\].reward is"):
        wire.decode_trajectory(message)
