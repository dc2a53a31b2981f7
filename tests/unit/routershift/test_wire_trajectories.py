"""Trajectories on the wire: segments survive, cost nothing where all was sampled, and fit or are refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from hypothesis import given
from hypothesis import strategies as st

from routershift import wire
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.trajectory import Completion, FinishReason, Role, RouterTrace, Segment, Trajectory, VersionSpan
from routershift.v1 import trajectory_pb2 as pb
from shared.errors import CorruptDataError

LAYOUT = RouterLayout((1, 2), num_experts=8, top_k=2, score_function=ScoreFunction.SOFTMAX)
NAME = pb.TrajectoryId(run_id="run", prompt_id="7", attempt=1, sample=3)


def completion(tokens: int) -> Completion:
    rng = np.random.default_rng(tokens)
    ids = np.tile(np.array([3, 5], np.uint8), (tokens, 2, 1))
    return Completion(
        index=3,
        token_ids=np.arange(100, 100 + tokens, dtype=np.int32),
        logprobs=-rng.random(tokens, dtype=np.float32),
        versions=(VersionSpan(4, tokens),),
        finish_reason=FinishReason.STOP,
        router_trace=RouterTrace(LAYOUT, ids, (-rng.random(ids.shape)).astype(np.float16)),
        text="It is 42.",
    )


# The model calls a tool, reads what it says and what the user adds, and answers.
EPISODE = Trajectory(
    completion(5),
    (
        Segment(Role.ASSISTANT, 2, True, "calculate(6 * 7)"),
        Segment(Role.TOOL, 3, False, "42"),
        Segment(Role.USER, 1, False, "So?"),
        Segment(Role.ASSISTANT, 3, True, "It is 42."),
    ),
    np.array([200, 201, 202, 203], np.int32),
)


def trip(trajectory: Trajectory) -> Trajectory:
    message = wire.encode_trajectory(NAME, trajectory)
    return wire.decode_trajectory(pb.Trajectory.FromString(message.SerializeToString()))


def test_an_episode_survives_the_wire() -> None:
    result = trip(EPISODE)
    assert result.segments == EPISODE.segments
    np.testing.assert_array_equal(result.given_ids, EPISODE.given_ids)
    np.testing.assert_array_equal(result.completion.token_ids, EPISODE.completion.token_ids)
    np.testing.assert_array_equal(result.completion.logprobs, EPISODE.completion.logprobs)
    assert result.completion.router_trace is not None
    assert result.completion.router_trace.expert_ids.shape == (5, 2, 2)  # sampled tokens alone have routes
    assert result.token_ids.tolist() == [100, 101, 200, 201, 202, 203, 102, 103, 104]
    assert result.sampled_at.tolist() == [0, 1, 6, 7, 8]


def test_reading_an_episode_copies_nothing() -> None:
    result = trip(EPISODE)
    for array in (result.given_ids, result.completion.token_ids, result.completion.logprobs):
        assert not array.flags.owndata
        assert not array.flags.writeable


def test_tokens_after_the_last_sampled_one_are_kept_and_not_trained_on() -> None:
    after = (Segment(Role.ASSISTANT, 5, True, "It is 42."), Segment(Role.TOOL, 4, False, "right"))
    result = trip(replace(EPISODE, segments=after))
    assert result.token_ids.tolist() == [100, 101, 102, 103, 104, 200, 201, 202, 203]
    assert result.trained_length == 5
    assert EPISODE.trained_length == 9
    assert result.segments == after


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 4)), max_size=8))
def test_order_is_that_of_the_segments(pieces: list[tuple[bool, int]]) -> None:
    """Against lists of single tokens."""
    pieces = [*pieces, (True, 1)]
    sampled: list[int] = []
    given_ids: list[int] = []
    everything: list[int] = []
    places: list[int] = []
    for was_sampled, count in pieces:
        for _ in range(count):
            token = 10 * len(everything) + was_sampled
            places += [len(everything)] if was_sampled else []
            everything.append(token)
            (sampled if was_sampled else given_ids).append(token)
    trajectory = Trajectory(
        replace(completion(len(sampled)), token_ids=np.array(sampled, np.int32)),
        tuple(Segment(Role.ASSISTANT, n, was_sampled) for was_sampled, n in pieces),
        np.array(given_ids, np.int32),
    )
    result = trip(trajectory)
    assert result.token_ids.tolist() == everything
    assert result.sampled_at.tolist() == places
    assert result.trained_length == places[-1] + 1


def test_a_response_of_one_segment_costs_not_a_byte(repository: Path) -> None:
    """What generation sends has no field that the schema of the baseline lacks."""
    files = descriptor_pb2.FileDescriptorSet.FromString((repository / "proto/baseline.binpb").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    before: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("routershift.v1.Trajectory"))
    only = Trajectory(EPISODE.completion)
    sent = wire.encode_trajectory(NAME, only).SerializeToString()
    old = before.FromString(sent)
    old.DiscardUnknownFields()
    assert old.SerializeToString() == sent
    assert pb.Trajectory(id=NAME, completion=wire.encode_completion(only.completion)).SerializeToString() == sent
    result = trip(only)
    assert result.segments == ()
    assert result.token_ids is result.completion.token_ids
    assert result.sampled_at.tolist() == list(range(5))
    assert result.trained_length == 5


def damaged(field: str) -> pb.Trajectory:
    """A message that is wrong in one way."""
    message = wire.encode_trajectory(NAME, EPISODE)
    match field:
        case "role":
            message.segments[1].role = pb.ROLE_UNSPECIFIED
        case "future role":
            message.segments[1].role = 77  # type: ignore[assignment]  # from a later schema
        case "sampled by a tool":
            message.segments[0].role = pb.ROLE_TOOL
        case "empty":
            message.segments[2].tokens = 0
        case "huge":
            message.segments[1].tokens = 2**32 - 1
        case "too few sampled":
            message.segments[3].tokens = 2
        case "too many given":
            message.segments[2].tokens = 2
        case "none sampled":
            for segment in message.segments:
                segment.sampled = False
        case "no segments":
            del message.segments[:]
        case "given without ids":
            message.ClearField("given_token_ids")
        case "dtype":
            message.given_token_ids.CopyFrom(wire.encode_tensor(np.zeros(4, np.float32)))
        case "rank":
            message.given_token_ids.shape.append(1)
        case "bytes":
            message.given_token_ids.data = message.given_token_ids.data[:-1]
        case "two texts":
            message.segments[3].text = "It is 43."
    return message


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("role", r"segments\[1\]\.role is 0; expected one of"),
        ("future role", r"segments\[1\]\.role is 77"),
        ("sampled by a tool", r"segments\[0\]\.role is tool of sampled tokens; expected assistant"),
        ("empty", r"segments\[2\]\.tokens is 0; expected at least 1"),
        ("huge", r"segments has 4294967296 given tokens; given_token_ids has 4"),
        ("too few sampled", r"segments has 4 sampled tokens; completion\.token_ids has 5"),
        ("too many given", r"segments has 5 given tokens; given_token_ids has 4"),
        ("none sampled", r"segments has 4 entries and none is sampled"),
        ("no segments", r"segments has 0 given tokens; given_token_ids has 4"),
        ("given without ids", r"segments has 4 given tokens; given_token_ids has 0"),
        ("dtype", r"given_token_ids\.dtype is float32; expected int32"),
        ("rank", r"given_token_ids\.shape is \(4, 1\); expected 1 axes"),
        ("bytes", r"given_token_ids\.data has 15 bytes"),
        ("two texts", r"segments\[3\]\.text has 9 characters; expected none"),
    ],
)
def test_what_does_not_fit_is_refused(field: str, text: str) -> None:
    with pytest.raises(CorruptDataError, match=text):
        wire.decode_trajectory(damaged(field))
