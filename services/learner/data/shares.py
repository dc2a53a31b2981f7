"""A rank's part of a step by reference: which rows, and where each rank reads its own from the payload store.

JSON in place of the rows themselves, so that rank 0 neither holds nor sends what others train on.
"""

import base64
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from routershift import wire
from routershift.algorithms.aggregation import Totals
from routershift.v1 import trajectory_pb2 as pb
from services.learner.data.batch import MicroBatch, Sample, Weighted
from shared.payloads.arrays import attach

_AT_ONCE = 4  # rows that a rank reads


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank computes of one update, not yet collated."""

    totals: Totals  # of the whole minibatch, all ranks together
    passes: tuple[MicroBatch, ...]
    keeps: bool  # False where an earlier pass over these samples was kept for people

    @property
    def samples(self) -> list[Weighted]:
        return [weighted for each in self.passes for weighted in each.samples]


def without_arrays(sample: Sample, envelope: pb.Trajectory) -> Sample:
    """The sample as far as a plan needs it: its lengths are as they were, and every value of its arrays is 0.

    Args:
        envelope: of the sample, with the reference to its arrays.
    """
    completion = sample.completion
    tokens = completion.token_ids.size
    lengths_alone = replace(
        completion,
        token_ids=np.broadcast_to(np.int32(0), tokens),
        logprobs=np.broadcast_to(np.float32(0), tokens),
        router_trace=None,
        top_logprobs=None,
    )
    kept = pb.Trajectory()
    kept.CopyFrom(envelope)
    kept.completion.ClearField("text")  # nobody trains on texts
    for segment in kept.segments:
        segment.ClearField("text")
    trajectory = replace(sample.trajectory, completion=lengths_alone)
    return replace(sample, trajectory=trajectory, reference=kept.SerializeToString())


def encode(shares: Sequence[Share]) -> bytes:
    """Each sample once, however often the updates pass over it. One without a reference has its arrays with it."""
    samples: dict[int, tuple[int, Weighted]] = {}  # by identity

    def place(weighted: Weighted) -> int:
        return samples.setdefault(id(weighted), (len(samples), weighted))[0]

    updates = [
        {
            "totals": asdict(share.totals),
            "keeps": share.keeps,
            "passes": [
                {"filler": each.filler, "rows": [[place(weighted) for weighted in row] for row in each.rows]}
                for each in share.passes
            ],
        }
        for share in shares
    ]
    rows = [_encoded(weighted) for _, weighted in samples.values()]
    return json.dumps({"updates": updates, "samples": rows}).encode()


def decode(payload: bytes, read: Callable[[pb.PayloadReference], bytes]) -> list[Share]:
    """The inverse of `encode`, with the arrays.

    Args:
        read: what a reference names, not yet checked; called by several threads.

    Raises:
        CorruptDataError: arrays are not what they were when rank 0 has checked them.
    """
    message = json.loads(payload)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        samples = list(pool.map(lambda row: _decoded(row, read), message["samples"]))
    return [
        Share(
            Totals(**update["totals"]),
            tuple(
                MicroBatch(tuple(tuple(samples[i] for i in row) for row in each["rows"]), each["filler"])
                for each in update["passes"]
            ),
            update["keeps"],
        )
        for update in message["updates"]
    ]


def _encoded(weighted: Weighted) -> dict[str, Any]:
    sample = weighted.sample
    message = sample.reference or wire.encode_trajectory(pb.TrajectoryId(), sample.trajectory).SerializeToString()
    return {
        "prompt": sample.prompt_ids.tolist(),
        "trajectory": base64.b64encode(message).decode("ascii"),
        "reward": sample.reward,
        "advantages": weighted.advantages,
        "kept": weighted.kept,
    }


def _decoded(row: dict[str, Any], read: Callable[[pb.PayloadReference], bytes]) -> Weighted:
    trajectory = pb.Trajectory.FromString(base64.b64decode(row["trajectory"]))
    if trajectory.HasField("payload"):
        attach(trajectory, read(trajectory.payload))
    sample = Sample(np.array(row["prompt"], np.int32), wire.decode_trajectory(trajectory), row["reward"])
    return Weighted(sample, tuple(row["advantages"]), row["kept"])
