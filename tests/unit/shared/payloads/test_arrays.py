"""Groups without their arrays, and with them again: the same message, and nothing that a store could smuggle in."""

import zlib

import numpy as np
import pytest

from routershift import wire
from routershift.v1 import trajectory_pb2 as pb
from shared.errors import CorruptDataError
from shared.payloads.arrays import attach, attach_all, detach
from tests.support.payloads import group

KEY = "prompts-1-0-0123456789abcdef"


def _whole(tokens: int = 50) -> pb.TrajectoryGroup:
    made = group(0, tokens)
    given = made.trajectories[1]
    given.segments.add(role=pb.ROLE_TOOL, tokens=3, text="42")
    given.segments.add(role=pb.ROLE_ASSISTANT, tokens=tokens, sampled=True)
    given.given_token_ids.CopyFrom(wire.encode_tensor(np.array([7, 8, 9], np.int32)))
    trace = made.trajectories[2].completion.router_trace
    trace.expert_ids.CopyFrom(wire.encode_tensor(np.zeros((tokens, 2, 2), np.uint8)))
    return made


def test_what_was_detached_and_attached_is_the_same_message() -> None:
    whole = _whole()
    before = whole.SerializeToString(deterministic=True)
    envelope, parts = detach(whole, KEY)
    assert whole.SerializeToString(deterministic=True) == before
    stored = b"".join(parts)
    received = pb.TrajectoryGroup.FromString(envelope.SerializeToString())
    attach_all(received, lambda r: stored[r.offset : r.offset + r.size_bytes])
    assert received == whole


def test_an_envelope_has_text_and_lengths_and_no_array() -> None:
    envelope, parts = detach(_whole(tokens=4000), KEY)
    assert envelope.ByteSize() < 2000 < sum(map(len, parts))
    for trajectory in envelope.trajectories:
        completion = trajectory.completion
        assert completion.text.startswith("answer")
        assert sum(span.tokens for span in completion.versions) == 4000
        assert not any(completion.HasField(name) for name in ("token_ids", "logprobs", "router_trace", "top_logprobs"))
        assert not trajectory.HasField("given_token_ids")


@pytest.mark.parametrize("place", [0, 100, -1])
def test_one_bit_that_turned_over_is_found(place: int) -> None:
    envelope, parts = detach(_whole(), KEY)
    torn = bytearray(parts[0])
    torn[place] ^= 1
    with pytest.raises(CorruptDataError, match=r"CRC-32 0x[0-9a-f]{8}; expected 0x"):
        attach(envelope.trajectories[0], bytes(torn))


def test_what_a_store_holds_changes_no_reward_and_no_text() -> None:
    (trajectory,) = detach(pb.TrajectoryGroup(trajectories=[pb.Trajectory()]), KEY)[0].trajectories
    for hostile in (
        pb.Trajectory(score=pb.Score(outcome=pb.OUTCOME_SCORED, reward=1.0)),
        pb.Trajectory(completion=pb.Completion(text="a better answer")),
        pb.Trajectory(segments=[pb.Segment(tokens=1)]),
    ):
        (made,) = detach(pb.TrajectoryGroup(trajectories=[pb.Trajectory()]), KEY)[0].trajectories
        part = hostile.SerializeToString()
        made.payload.size_bytes, made.payload.crc32 = len(part), zlib.crc32(part)
        with pytest.raises(CorruptDataError, match="beside arrays"):
            attach(made, part)
    attach(trajectory, b"")


def test_arrays_in_two_places_are_refused() -> None:
    envelope, parts = detach(_whole(), KEY)
    trajectory = envelope.trajectories[0]
    trajectory.completion.token_ids.CopyFrom(wire.encode_tensor(np.zeros(50, np.int32)))
    with pytest.raises(CorruptDataError, match="token_ids and a payload; expected one of them"):
        attach(trajectory, parts[0])
