"""Whatever bytes come in, a decoder gives a sound value or says that they are corrupt; nothing else leaves it."""

from typing import Any

import numpy as np
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from routershift import wire
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.trajectory import Completion, FinishReason, RouterTrace, TopLogprobs, Trajectory, VersionSpan
from routershift.v1 import trajectory_pb2 as pb
from routershift.wire.traces import trace_checksum
from services.learner.data.messages import decode_group
from shared.errors import CorruptDataError
from shared.streams.entries import Entry

FUZZ = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
LAYOUT = RouterLayout((1, 3), num_experts=8, top_k=2, score_function=ScoreFunction.SOFTMAX)
TOKENS = 3


def completion() -> pb.Completion:
    rng = np.random.default_rng(0)
    routes = (TOKENS, 2, 2)
    trace = RouterTrace(
        LAYOUT,
        rng.permuted(np.tile(np.arange(8, dtype=np.uint8), (TOKENS, 2, 1)), axis=-1)[..., :2].copy(),
        -rng.random(routes).astype(np.float16),
        rng.random((TOKENS, 2, 8)).astype(np.float16),
    )
    top = TopLogprobs(np.ones((TOKENS, 2), np.int32), -np.ones((TOKENS, 2), np.float32))
    return wire.encode_completion(
        Completion(
            0,
            np.arange(TOKENS, dtype=np.int32),
            -np.ones(TOKENS, np.float32),
            (VersionSpan(1, TOKENS),),
            FinishReason.STOP,
            trace,
            "1+2",
            top,
        )
    )


def episode() -> pb.Trajectory:
    """A message of a response in which two given tokens stand between sampled ones."""
    return pb.Trajectory(
        completion=completion(),
        segments=[
            pb.Segment(role=pb.ROLE_ASSISTANT, tokens=1, sampled=True, text="1"),
            pb.Segment(role=pb.ROLE_TOOL, tokens=2, text="+"),
            pb.Segment(role=pb.ROLE_ASSISTANT, tokens=TOKENS - 1, sampled=True),
        ],
        given_token_ids=wire.encode_tensor(np.arange(2, dtype=np.int32)),
    )


def group() -> pb.TrajectoryGroup:
    message = pb.TrajectoryGroup(prompt=pb.Prompt(text="?", token_ids=[1, 2]))
    message.generated_at.FromSeconds(1)
    message.trajectories.add().CopyFrom(episode())
    message.trajectories.add(completion=completion())
    for sample, trajectory in enumerate(message.trajectories):
        trajectory.id.sample = sample
        trajectory.score.CopyFrom(pb.Score(outcome=pb.OUTCOME_SCORED, reward=1.0, parts={"correct": 1.0}))
    return message


GROUP = group().SerializeToString()

_UINT32 = st.integers(0, 4) | st.integers(0, 2**32 - 1)
_INT64 = st.integers(-4, 4) | st.integers(-(2**63), 2**63 - 1)
_TENSOR = st.builds(
    pb.Tensor,
    dtype=st.integers(0, 12) | st.integers(-(2**31), 2**31 - 1),
    shape=st.lists(_UINT32, max_size=4),
    data=st.binary(max_size=64),
)
# Fields that replace those of a sound message.
_DAMAGE = st.fixed_dictionaries(
    {},
    optional={
        "token_ids": _TENSOR,
        "logprobs": _TENSOR,
        "finish_reason": st.integers(-(2**31), 2**31 - 1),
        "versions": st.lists(st.builds(pb.VersionSpan, version=_INT64, tokens=_UINT32), max_size=3),
    },
)
_TRACE_DAMAGE = st.fixed_dictionaries(
    {},
    optional={
        "expert_ids": _TENSOR,
        "log_scores": _TENSOR,
        "logits": _TENSOR,
        "layout": st.builds(
            pb.RouterLayout,
            layer_ids=st.lists(_UINT32, max_size=3),
            num_experts=st.integers(0, 9) | st.integers(0, 2**32 - 1),
            top_k=st.integers(0, 9) | st.integers(0, 2**32 - 1),
            score_function=st.integers(-(2**31), 2**31 - 1),
        ),
    },
)


def replace(message: Any, fields: dict[str, Any]) -> Any:
    for name, value in fields.items():
        message.ClearField(name)
        message.MergeFrom(type(message)(**{name: value}))
    return message


def check_trajectory(result: Trajectory) -> None:
    """What the rest of the program relies on."""
    check(result.completion)
    sampled = result.completion.token_ids.size
    assert result.token_ids.size == sampled + result.given_ids.size
    assert result.token_ids[result.sampled_at].tolist() == result.completion.token_ids.tolist()
    assert sampled <= result.trained_length <= result.token_ids.size
    assert all(segment.tokens > 0 for segment in result.segments)


def check(result: Completion) -> None:
    """What the rest of the program relies on."""
    tokens = result.token_ids.size
    assert result.logprobs.shape == (tokens,)
    assert sum(span.tokens for span in result.versions) == tokens
    if (trace := result.router_trace) is not None:
        shape = (tokens, len(trace.layout.layer_ids), trace.layout.top_k)
        assert trace.expert_ids.shape == shape
        assert (trace.expert_ids < trace.layout.num_experts).all()
        assert trace.log_scores is None or np.isfinite(trace.log_scores).all()
        assert trace.logits is None or trace.logits.shape == (*shape[:2], trace.layout.num_experts)


@FUZZ
@given(_TENSOR, st.sampled_from(["float16", "int32", "uint8"]), st.integers(0, 3))
@example(pb.Tensor(dtype=pb.D_TYPE_INT32, shape=[0, 2**32 - 1, 2**32 - 1]), "int32", 3)
def test_a_tensor(tensor: pb.Tensor, dtype: str, ndim: int) -> None:
    try:
        array = wire.decode_tensor(tensor, "field", dtype, ndim)
    except CorruptDataError:
        return
    assert (array.dtype.name, array.shape, array.nbytes) == (dtype, tuple(tensor.shape), len(tensor.data))
    assert not array.flags.writeable


@FUZZ
@given(_DAMAGE, _TRACE_DAMAGE, st.integers(0, 2**32 - 1))
def test_a_completion_whose_checksum_is_right(damage: dict[str, Any], trace: dict[str, Any], earlier: int) -> None:
    message = replace(completion(), damage)
    replace(message.router_trace, trace)
    message.router_trace.crc32 = trace_checksum(message.router_trace)
    for before in (0, earlier):
        try:
            result = wire.decode_completion(message, before)
        except CorruptDataError:
            continue
        if before == 0:
            check(result)


@FUZZ
@given(
    segments=st.lists(
        st.builds(
            pb.Segment,
            role=st.integers(-1, 5) | st.integers(-(2**31), 2**31 - 1),
            tokens=_UINT32,
            sampled=st.booleans(),
            text=st.text(max_size=2),
        ),
        max_size=4,
    ),
    given=_TENSOR | st.none(),
)
@example(segments=[], given=None)
@example(segments=[pb.Segment(role=pb.ROLE_ASSISTANT, tokens=TOKENS, sampled=True)], given=None)
@example(segments=[pb.Segment(role=pb.ROLE_TOOL, tokens=2**32 - 1)], given=None)
def test_a_trajectory_of_any_segments(segments: list[pb.Segment], given: pb.Tensor | None) -> None:
    message = replace(episode(), {"segments": segments, "given_token_ids": given})
    try:
        result = wire.decode_trajectory(message)
    except CorruptDataError:
        return
    check_trajectory(result)
    assert wire.encode_trajectory(message.id, result).segments == message.segments


_EDITS = st.lists(st.tuples(st.integers(0, len(GROUP) - 1), st.binary(max_size=4), st.integers(0, 4)), max_size=6)


@FUZZ
@given(_EDITS)
@example([])
def test_a_group_of_trajectories_of_which_bytes_were_changed(edits: list[tuple[int, bytes, int]]) -> None:
    data = bytearray(GROUP)
    for start, piece, gone in edits:
        data[start : start + gone] = piece
    decode(bytes(data))


@FUZZ
@given(st.binary(max_size=300))
def test_a_group_of_any_bytes(data: bytes) -> None:
    decode(data)


@FUZZ
@given(
    outcome=st.integers(-(2**31), 2**31 - 1) | st.just(pb.OUTCOME_SCORED),
    reward=st.floats(width=64),
    prompt=st.lists(st.integers(0, 2**32 - 1), max_size=3),
    seconds=st.integers(-(2**63), 2**63 - 1),
)
@example(outcome=pb.OUTCOME_SCORED, reward=0.0, prompt=[2**31], seconds=0)
@example(outcome=pb.OUTCOME_SCORED, reward=0.0, prompt=[1], seconds=2**62)
@example(outcome=99, reward=0.0, prompt=[1], seconds=0)
def test_a_group_with_odd_fields(outcome: Any, reward: float, prompt: list[int], seconds: int) -> None:
    message = group()
    replace(message.prompt, {"token_ids": prompt})
    message.generated_at.seconds = seconds
    message.trajectories[1].score.outcome = outcome
    message.trajectories[1].score.reward = reward
    decode(message.SerializeToString())


def decode(data: bytes) -> None:
    try:
        scored = decode_group(Entry("1-0", "0/0", 2, data, 1))
    except CorruptDataError:
        return
    assert len(scored.group.samples) == 2
    for sample in scored.group.samples:
        assert np.isfinite(sample.reward)
        assert (sample.prompt_ids >= 0).all()
        check_trajectory(sample.trajectory)
