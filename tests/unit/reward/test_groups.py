"""RawGroup: the texts of a group, and its scores, without taking the rest apart."""

import contextlib
import random

import numpy as np
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet

from routershift.v1 import trajectory_pb2 as pb
from services.reward.groups import RawGroup
from shared.errors import CorruptDataError
from shared.protobuf import header

SCORES = [pb.Score(outcome=pb.OUTCOME_SCORED, reward=i, parts={"correct": i}, verifier="v") for i in range(3)]


def group() -> pb.TrajectoryGroup:
    made = pb.TrajectoryGroup(prompt=pb.Prompt(prompt_id="7", text="?", verifier="countdown", token_ids=[1, 300]))
    made.prompt.reference.update({"a": [1, 2]})
    made.generated_at.GetCurrentTime()
    for i in range(3):
        completion = made.trajectories.add(id=pb.TrajectoryId(prompt_id="7", sample=i)).completion
        completion.text = "é" * 100 * i
        completion.token_ids.data = np.arange(i, dtype=np.int32).tobytes()
        completion.router_trace.expert_ids.data = bytes(300 * i)
        completion.router_trace.crc32 = 2**32 - 1
    return made


def rescored(message: pb.TrajectoryGroup) -> pb.TrajectoryGroup:
    """As protobuf would do it, with the time of the raw one."""
    raw = RawGroup(message.SerializeToString())
    found = pb.TrajectoryGroup.FromString(raw.scored(SCORES))
    for trajectory, score in zip(message.trajectories, SCORES, strict=True):
        trajectory.score.CopyFrom(score)
    assert abs(found.scored_at.ToSeconds() - message.generated_at.ToSeconds()) < 60
    message.scored_at.CopyFrom(found.scored_at)
    assert raw.prompt == message.prompt
    assert raw.texts == [trajectory.completion.text for trajectory in message.trajectories]
    return found


def test_a_scored_group_is_what_protobuf_makes_of_it() -> None:
    message = group()
    assert rescored(message) == message


def test_special_tokens_are_read_beside_the_text() -> None:
    message = group()
    message.trajectories[1].completion.special_tokens.add(position=3, text="[/THINK]")
    message.trajectories[1].completion.special_tokens.add(position=100, text="</s>")
    raw = RawGroup(message.SerializeToString())
    assert raw.special_tokens == [(), ((3, "[/THINK]"), (100, "</s>")), ()]
    assert rescored(message) == message


def test_of_an_episode_the_response_is_what_the_model_said_last_and_the_messages_are_all() -> None:
    message = group()
    trajectory = message.trajectories[1]
    said = [(pb.ROLE_ASSISTANT, "add(2, 2)"), (pb.ROLE_TOOL, "4"), (pb.ROLE_ASSISTANT, ""), (pb.ROLE_TOOL, "right")]
    for role, text in said:
        trajectory.segments.add(role=role, tokens=2, sampled=role == pb.ROLE_ASSISTANT, text=text)
    trajectory.given_token_ids.data = bytes(16)
    raw = RawGroup(message.SerializeToString())
    assert raw.texts[1] == trajectory.completion.text
    assert raw.messages == [
        (),
        (("assistant", "add(2, 2)"), ("tool", "4"), ("assistant", trajectory.completion.text), ("tool", "right")),
        (),
    ]
    assert rescored(message) == message
    trajectory.segments[1].role = pb.ROLE_UNSPECIFIED
    with pytest.raises(CorruptDataError, match=r"segments\[1\]\.role is 0; expected one of"):
        RawGroup(message.SerializeToString())


def test_scores_of_an_earlier_time_are_replaced() -> None:
    message = group()
    message.scored_at.FromSeconds(5)
    for trajectory in message.trajectories:
        trajectory.score.parts["old"] = 1
        trajectory.score.error = "old"
    found = rescored(message)
    assert found == message
    assert found.trajectories[1].score.parts == {"correct": 1}


def test_fields_of_a_later_schema_pass_through() -> None:
    unknown = header(900, 5) + b"later" + b"\xc0\x3e\x07" + b"\xc5\x3e1234" + b"\xc1\x3e12345678"  # one of each kind
    payload = group().SerializeToString() + unknown
    found = UnknownFieldSet(pb.TrajectoryGroup.FromString(RawGroup(payload).scored(SCORES)))
    assert [(found[i].field_number, found[i].data) for i in range(len(found))] == [
        (900, b"later"), (1000, 7), (1000, int.from_bytes(b"1234", "little")),
        (1000, int.from_bytes(b"12345678", "little")),
    ]  # fmt: skip


def test_the_last_of_two_texts_counts() -> None:
    first, second = (pb.Completion(text=text).SerializeToString() for text in ("first", "second"))
    completion = header(pb.Trajectory.COMPLETION_FIELD_NUMBER, len(first + second)) + first + second
    payload = header(pb.TrajectoryGroup.TRAJECTORIES_FIELD_NUMBER, len(completion)) + completion
    assert (
        RawGroup(payload).texts
        == ["second"]
        == [trajectory.completion.text for trajectory in pb.TrajectoryGroup.FromString(payload).trajectories]
    )


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\xff\xff", b"\x12\x7f", b"\x12\x02\x12\x09", b"\x0b\x0c", b"\x02\x01x", b"\xff" * 11, b"\x10\x05",
        b"\x0a\x02\xff\xff", b"\x12\x04\x12\x02\x12\x01", b"\x12\x02\x10\x01", b"\x0d\x01",
    ],
)  # fmt: skip
def test_what_is_no_group_is_refused(payload: bytes) -> None:
    with pytest.raises(CorruptDataError, match=rf"payload of {len(payload)} bytes is no .*TrajectoryGroup: "):
        RawGroup(payload)


def test_noise_is_refused_or_read_and_never_an_error_of_another_kind() -> None:
    message = group()
    message.trajectories[0].segments.add(role=pb.ROLE_TOOL, tokens=1, text="é")
    message.trajectories[0].segments.add(role=pb.ROLE_ASSISTANT, tokens=1, sampled=True)
    moments, whole = random.Random(0), message.SerializeToString()
    for _ in range(4000):
        noisy = bytearray(whole)
        for _ in range(moments.randint(1, 4)):
            noisy[moments.randrange(len(noisy))] = moments.randrange(256)
        with contextlib.suppress(CorruptDataError):
            RawGroup(bytes(noisy[: moments.randrange(len(noisy) + 1)]))
