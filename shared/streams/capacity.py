"""Whether the groups of a step fit into a stream, and the streams into Redis, known before anything is sampled."""

import logging

import numpy as np

from routershift import wire
from routershift.routing.layout import RouterLayout
from routershift.trajectory import Completion, FinishReason, RouterExport, RouterTrace, ScoreDtype, VersionSpan
from routershift.v1 import trajectory_pb2 as pb
from shared.errors import InvalidInputError, PreconditionError
from shared.payloads.arrays import detach
from shared.payloads.store import PayloadStore, new_key
from shared.settings import RolloutSettings, RunSettings, StreamSettings
from shared.streams.keys import STAGES

log = logging.getLogger(__name__)

_TEXT_BYTES = 4  # of a token, as byte-level vocabularies have it for English


def trajectory_bytes(
    run: RunSettings,
    rollout: RolloutSettings,
    layout: RouterLayout | None,
    export: RouterExport,
    scores: ScoreDtype,
    layers: int | None = None,
    *,
    without_arrays: bool = False,
) -> int:
    """Bytes of a scored trajectory of `rollout.max_tokens` tokens.

    Args:
        layout: of the model's routers; None for a dense model.
        export: what of them is exported.
        scores: how their scores travel.
        layers: that each token has; None: all.
        without_arrays: only what is on a stream where a payload store has the arrays.
    """
    tokens, trace = rollout.max_tokens, None
    if layout is not None and export is not RouterExport.NONE:
        shape = (tokens, len(layout.layer_ids))
        trace = RouterTrace(
            layout=layout,
            expert_ids=np.zeros((*shape, layout.top_k), layout.id_dtype),
            log_scores=None if export is RouterExport.IDS else np.zeros((*shape, layout.top_k), np.float16),
            logits=np.zeros((*shape, layout.num_experts), np.float16) if export is RouterExport.FULL else None,
        )
        if layers is not None:
            trace = trace.thinned(layers, seed=0)
        if scores is ScoreDtype.UINT8:
            trace = trace.coded()
    completion = Completion(
        index=0,
        token_ids=np.zeros(tokens, np.int32),
        logprobs=np.zeros(tokens, np.float32),
        versions=(VersionSpan(run.steps, tokens),),
        finish_reason=FinishReason.LENGTH,
        router_trace=trace,
        text="x" * (_TEXT_BYTES * tokens),
    )
    message = pb.Trajectory(
        id=pb.TrajectoryId(run_id=run.id, prompt_id=f"{run.steps:08d}"),
        completion=wire.encode_completion(completion),
        score=pb.Score(
            outcome=pb.OUTCOME_SCORED, reward=1.0, parts={"correct": 1.0}, verifier="countdown", seconds=1.0
        ),
    )
    if without_arrays:
        envelope, _ = detach(pb.TrajectoryGroup(trajectories=[message]), new_key("prompts", "0-0"))
        (message,) = envelope.trajectories
    return int(message.ByteSize())


def check_store_fits(run: RunSettings, rollout: RolloutSettings, store: PayloadStore, arrays: int) -> None:
    """Refuses a run whose steps the payload store has no room for.

    Args:
        arrays: bytes of those of the longest trajectory.

    Raises:
        InvalidInputError: names the setting, what is free and what is needed.
    """
    if (free := store.free_bytes()) is None:
        return
    step, tickets = run.groups_per_step * rollout.n * arrays, run.tickets * rollout.n * arrays
    needs = (
        f"{store} has {free} bytes free, and the arrays of a step of run.groups_per_step {run.groups_per_step} x "
        f"rollout.n {rollout.n} responses of rollout.max_tokens {rollout.max_tokens} take {step} bytes, those of all "
        f"{run.tickets} tickets {tickets}"
    )
    if step > free:
        raise InvalidInputError(f"{needs}: make room, or set payloads.folder to a larger volume")
    if tickets > free:
        log.warning("%s: where responses are that long, generation waits and checkpoints come early", needs)


def check_memory(streams: StreamSettings, limit: int) -> None:
    """Refuses streams that may grow beyond what Redis holds.

    Args:
        limit: its maxmemory in bytes.

    Raises:
        PreconditionError: names the setting, both numbers and what fits.
    """
    # Streams of one stage share a limit. The room of one more is for what is on its way, and for dead letters.
    stages = len(set(STAGES.values()))
    count = stages + 1
    if count * streams.max_bytes > limit:
        raise PreconditionError(
            f"streams.max_bytes is {streams.max_bytes}; groups at {stages} stages and as much as one more need "
            f"{count * streams.max_bytes} bytes, and Redis has maxmemory {limit}; raise that, or set "
            f"streams.max_bytes to {limit // count} or less"
        )


def check_step_fits(run: RunSettings, rollout: RolloutSettings, streams: StreamSettings, trajectory: int) -> None:
    """Refuses a run whose steps may never fill: the learner needs all groups of a step on one stream.

    Less room than all tickets need is no error. Producers then wait for the learner, and checkpoints come early.

    Args:
        trajectory: bytes of the longest; see `trajectory_bytes`. Prompts are not counted.

    Raises:
        InvalidInputError: names the settings and their numbers.
    """
    group = rollout.n * trajectory
    step, tickets = run.groups_per_step * group, run.tickets * group
    sum_ = (
        f"a step takes run.groups_per_step {run.groups_per_step} x rollout.n {rollout.n} x "
        f"{trajectory} bytes (a response of rollout.max_tokens {rollout.max_tokens}) = {step} bytes, all {run.tickets} "
        f"tickets in flight {tickets}"
    )
    if step > streams.max_bytes:
        raise InvalidInputError(
            f"streams.max_bytes is {streams.max_bytes}, and {sum_}: set it to at least {step}, better {tickets}"
        )
    if tickets > streams.max_bytes:
        log.warning(
            "streams.max_bytes is %d, and %s: where responses are that long, producers wait and checkpoints come early",
            streams.max_bytes,
            sum_,
        )
