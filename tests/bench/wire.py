"""A group to bytes and back: one response each, and episodes of the same tokens in several turns."""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from routershift import wire
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.trajectory import Completion, FinishReason, Role, RouterTrace, Segment, Trajectory, VersionSpan
from routershift.v1 import trajectory_pb2 as pb
from tests.bench.timing import interleaved

# Of Qwen3-30B-A3B.
_LAYOUT = RouterLayout(tuple(range(48)), num_experts=128, top_k=8, score_function=ScoreFunction.SOFTMAX)
_SAMPLES = 8
_SEED = 0
_BYTES = 200_000_000  # of each turn, about: CPU time is counted in hundredths of a second
QUICK = {"rounds": 2, "tokens": 64}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7, help="paired turns that count")
    parser.add_argument("--tokens", type=int, default=1024, help="sampled tokens of each trajectory")
    parser.add_argument("--turns", type=int, default=8, help="turns of the model in an episode")
    parser.add_argument("--given", type=int, default=64, help="tokens that are given between two turns")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Both have the same sampled tokens, log-probs and routes. `arrays` is what numpy holds of them."""
    completions = [_completion(i, arguments.tokens) for i in range(_SAMPLES)]
    groups = {
        "one_turn": [Trajectory(completion) for completion in completions],
        "episode": [_episode(completion, arguments.turns, arguments.given) for completion in completions],
    }
    encoded = {name: _encode(group) for name, group in groups.items()}
    again = max(1, _BYTES // len(encoded["one_turn"]))
    encodings = {name: partial(_repeat, partial(_encode, group), again) for name, group in groups.items()}
    decodings = {name: partial(_repeat, partial(_decode, payload), again) for name, payload in encoded.items()}
    timings = {"encode": interleaved(encodings, arguments.rounds), "decode": interleaved(decodings, arguments.rounds)}
    tokens = _SAMPLES * arguments.tokens
    return {
        "groups": {
            name: {
                "bytes": len(encoded[name]),
                "arrays": sum(_array_bytes(trajectory) for trajectory in group),
                "bytes_per_sampled_token": len(encoded[name]) / tokens,
                **{f"{what}_ms": 1e3 * each.spread(name).median / again for what, each in timings.items()},
            }
            for name, group in groups.items()
        },
        "ratio_of_episode": {what: asdict(each.ratio("episode", "one_turn")) for what, each in timings.items()},
        "cpu": {what: each.cpu("one_turn", "token", again * tokens) for what, each in timings.items()},
    }


def _repeat(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


def _encode(group: list[Trajectory]) -> bytes:
    """As generation does."""
    message = pb.TrajectoryGroup(
        trajectories=[wire.encode_trajectory(pb.TrajectoryId(sample=i), each) for i, each in enumerate(group)]
    )
    encoded: bytes = message.SerializeToString()
    return encoded


def _decode(payload: bytes) -> list[Trajectory]:
    """As the learner does, without its checks of routes."""
    return [wire.decode_trajectory(each) for each in pb.TrajectoryGroup.FromString(payload).trajectories]


def _completion(index: int, tokens: int) -> Completion:
    rng = np.random.default_rng((_SEED, index))
    shape = (tokens, len(_LAYOUT.layer_ids), _LAYOUT.top_k)
    return Completion(
        index=index,
        token_ids=rng.integers(0, 150_000, tokens, np.int32),
        logprobs=-rng.random(tokens, np.float32),
        versions=(VersionSpan(0, tokens),),
        finish_reason=FinishReason.STOP,
        router_trace=RouterTrace(
            _LAYOUT,
            rng.random((*shape[:2], _LAYOUT.num_experts), np.float32)
            .argpartition(-_LAYOUT.top_k)[..., -_LAYOUT.top_k :]
            .astype(_LAYOUT.id_dtype),
            -rng.random(shape, np.float32).astype(np.float16),
        ),
    )


def _episode(completion: Completion, turns: int, given: int) -> Trajectory:
    """The same tokens in turns, with others between them."""
    ends = np.linspace(0, completion.token_ids.size, turns + 1).astype(int)
    segments = []
    for begin, end in pairwise(ends.tolist()):
        segments += [Segment(Role.ASSISTANT, end - begin, True), Segment(Role.TOOL, given, False)]
    return Trajectory(completion, tuple(segments[:-1]), np.zeros((turns - 1) * given, np.int32))


def _array_bytes(trajectory: Trajectory) -> int:
    completion, trace = trajectory.completion, trajectory.completion.router_trace
    return (
        completion.token_ids.nbytes
        + completion.logprobs.nbytes
        + trajectory.given_ids.nbytes
        + (trace.nbytes if trace else 0)
    )
