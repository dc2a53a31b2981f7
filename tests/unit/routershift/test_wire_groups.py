"""Scores behind a group's bytes, and in its trajectories: one message, wherever they stand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.unknown_fields import UnknownFieldSet

from routershift import wire
from routershift.v1 import trajectory_pb2 as pb
from shared.errors import CorruptDataError

SCORES = [pb.Score(outcome=pb.OUTCOME_SCORED, reward=i, parts={"correct": i}, verifier="v") for i in range(3)]


def group() -> pb.TrajectoryGroup:
    made = pb.TrajectoryGroup(prompt=pb.Prompt(prompt_id="7", text="?", verifier="countdown", token_ids=[1, 300]))
    made.generated_at.GetCurrentTime()
    for i in range(3):
        completion = made.trajectories.add(id=pb.TrajectoryId(prompt_id="7", sample=i)).completion
        completion.text = "é" * 100 * i
        completion.token_ids.data = np.arange(i, dtype=np.int32).tobytes()
        completion.router_trace.expert_ids.data = bytes(300 * i)
        completion.router_trace.crc32 = 2**32 - 1
    return made


def scored(message: pb.TrajectoryGroup, at: pb.TrajectoryGroup) -> pb.TrajectoryGroup:
    """With each score in its trajectory, as protobuf does it; scored when `at` was."""
    made = pb.TrajectoryGroup()
    made.CopyFrom(message)
    for trajectory, score in zip(made.trajectories, SCORES, strict=True):
        trajectory.score.CopyFrom(score)
    made.scored_at.CopyFrom(at.scored_at)
    return made


def test_a_group_with_scores_behind_it_is_the_one_with_scores_in_it() -> None:
    message = group()
    found = wire.parse_group(message.SerializeToString() + wire.encode_scores(SCORES))
    assert found == scored(message, found)
    assert found.SerializeToString(deterministic=True) == scored(message, found).SerializeToString(deterministic=True)
    assert 0 <= found.scored_at.ToSeconds() - message.generated_at.ToSeconds() < 60


def test_a_score_behind_takes_the_place_of_one_inside() -> None:
    message = group()
    for trajectory in message.trajectories:
        trajectory.score.parts["old"] = 1
        trajectory.score.error = "old"
    found = wire.parse_group(message.SerializeToString() + wire.encode_scores(SCORES))
    assert found == scored(message, found)
    assert found.trajectories[1].score == SCORES[1]


def test_a_group_of_the_baseline_with_its_scores_inside_is_read_as_it_is(repository: Path) -> None:
    files = descriptor_pb2.FileDescriptorSet.FromString((repository / "proto/baseline.binpb").read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in files.file:
        pool.Add(file)
    kind: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("routershift.v1.TrajectoryGroup"))
    message = scored(group(), group())
    sent = kind.FromString(message.SerializeToString()).SerializeToString()
    assert wire.parse_group(sent) == message


def test_fields_of_a_later_schema_pass_through() -> None:
    later = pb.TrajectoryGroup(trajectories=[pb.Trajectory()]).SerializeToString() + b"\xc0\x3e\x07"
    found = UnknownFieldSet(wire.parse_group(later + wire.encode_scores(SCORES[:1])))
    assert [(found[i].field_number, found[i].data) for i in range(len(found))] == [(1000, 7)]


@pytest.mark.parametrize("count", [1, 4, 6])
def test_scores_of_other_trajectories_are_refused(count: int) -> None:
    payload = group().SerializeToString() + wire.encode_scores((SCORES * 2)[:count])
    with pytest.raises(CorruptDataError, match=rf"group.scores has {count} entries; expected 3, one for each"):
        wire.parse_group(payload)


@pytest.mark.parametrize("payload", [b"\xff\xff\xff", b"\x12\x7f", b"\x12\x02\x12\x09", b"\x02\x01x", b"\xff" * 11])
def test_what_is_no_group_is_refused(payload: bytes) -> None:
    with pytest.raises(CorruptDataError, match=rf"payload of {len(payload)} bytes is no .*TrajectoryGroup: "):
        wire.parse_group(payload)
