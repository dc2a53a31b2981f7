"""What there is to judge in a group."""

import contextlib
import random

import pytest

from routershift import wire
from routershift.v1 import trajectory_pb2 as pb
from services.reward.messages import decode_items
from shared.errors import CorruptDataError


def group() -> pb.TrajectoryGroup:
    made = pb.TrajectoryGroup(prompt=pb.Prompt(prompt_id="7", text="?", verifier="countdown", token_ids=[1, 300]))
    made.prompt.reference.update({"a": [1, 2]})
    for i in range(3):
        completion = made.trajectories.add(id=pb.TrajectoryId(prompt_id="7", sample=i)).completion
        completion.text = "é" * 100 * i
        completion.token_ids.data = bytes(4 * i)
    return made


def test_each_response_is_an_item_with_its_special_tokens() -> None:
    message = group()
    message.trajectories[1].completion.special_tokens.add(position=3, text="[/THINK]")
    message.trajectories[1].completion.special_tokens.add(position=100, text="</s>")
    items = decode_items(message)
    assert [item.response for item in items] == ["", "é" * 100, "é" * 200]
    assert [item.special_tokens for item in items] == [(), ((3, "[/THINK]"), (100, "</s>")), ()]
    assert {(item.prompt, str(item.reference)) for item in items} == {("?", "{'a': [1, 2]}")}
    assert [list(item.messages) for item in items] == [[], [], []]


def test_of_an_episode_the_response_is_what_the_model_said_last_and_the_messages_are_all() -> None:
    message = group()
    trajectory = message.trajectories[1]
    said = [(pb.ROLE_ASSISTANT, "add(2, 2)"), (pb.ROLE_TOOL, "4"), (pb.ROLE_ASSISTANT, ""), (pb.ROLE_TOOL, "right")]
    for role, text in said:
        trajectory.segments.add(role=role, tokens=2, sampled=role == pb.ROLE_ASSISTANT, text=text)
    item = decode_items(message)[1]
    assert item.response == trajectory.completion.text
    assert item.messages == [
        ("assistant", "add(2, 2)"), ("tool", "4"), ("assistant", trajectory.completion.text), ("tool", "right"),
    ]  # fmt: skip
    trajectory.segments[1].role = pb.ROLE_UNSPECIFIED
    with pytest.raises(CorruptDataError, match=r"segments\[1\]\.role is 0; expected one of"):
        decode_items(message)


def test_a_group_that_was_judged_is_not_judged_again() -> None:
    message = group()
    message.scored_at.FromSeconds(5)
    with pytest.raises(CorruptDataError, match="scored_at is set; expected a group that was not judged before"):
        decode_items(message)


def test_noise_is_refused_or_read_and_never_an_error_of_another_kind() -> None:
    message = group()
    message.trajectories[0].segments.add(role=pb.ROLE_TOOL, tokens=1, text="é")
    message.trajectories[0].segments.add(role=pb.ROLE_ASSISTANT, tokens=1, sampled=True)
    moments, whole = random.Random(0), message.SerializeToString()
    read = 0
    for _ in range(4000):
        noisy = bytearray(whole)
        for _ in range(moments.randint(1, 4)):
            noisy[moments.randrange(len(noisy))] = moments.randrange(256)
        with contextlib.suppress(CorruptDataError):
            decode_items(wire.parse_group(bytes(noisy[: moments.randrange(len(noisy) + 1)])))
            read += 1
    assert 0 < read < 4000
