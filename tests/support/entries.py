"""Groups on their way through the streams, and what became of them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import zip_longest
from typing import Any

from redis.asyncio import Redis

from routershift import wire
from routershift.v1 import trajectory_pb2 as pb
from services.learner.data.batch import Group
from shared.streams.keys import Stream
from shared.streams.run import Run

SAMPLES = 4


def message(group: Group, index: int) -> pb.TrajectoryGroup:
    """A group as the reward service hands it over."""
    prompt = pb.Prompt(
        prompt_id=f"{index:08d}",
        token_ids=group.samples[0].prompt_ids.tolist(),
        verifier="countdown",
        sampling=pb.SamplingParams(n=SAMPLES),
    )
    trajectories = [
        wire.encode_trajectory(pb.TrajectoryId(prompt_id=prompt.prompt_id, sample=i), sample.trajectory)
        for i, sample in enumerate(group.samples)
    ]
    for trajectory, sample in zip(trajectories, group.samples, strict=True):
        score = pb.Score(outcome=pb.OUTCOME_SCORED, reward=sample.reward, parts={"correct": sample.reward})
        trajectory.score.CopyFrom(score)
    made = pb.TrajectoryGroup(prompt=prompt, trajectories=trajectories)
    made.generated_at.GetCurrentTime()
    return made


async def put(run: Run, destination: Stream, *messages: pb.TrajectoryGroup, traceparents: Sequence[str] = ()) -> None:
    """Brings groups onto a stream by the way that they go in a run, each with its traceparent, as far as they reach."""
    for made, traceparent in zip_longest(messages, traceparents, fillvalue=""):
        assert isinstance(made, pb.TrajectoryGroup), "more traceparents than messages"
        index = await run.next_prompt()
        made.prompt.prompt_id = f"{index:08d}"
        assert await run.admit(index, made.prompt, tickets=1000, traceparent=str(traceparent)) == "ok"
        for source, next_stream in ((Stream.PROMPTS, Stream.ROLLOUTS), (Stream.ROLLOUTS, Stream.SCORED)):
            reader = run.consumer(source)
            (entry,) = await reader.read(1)
            await reader.hand_over(entry, next_stream, made)
            if next_stream == destination:
                break


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():  # noqa: ASYNC110  # another process's state has no event
            await asyncio.sleep(0.05)


async def dead_letters(redis: Redis, run: Run) -> list[pb.DeadLetter]:
    entries: Any = await redis.xrange(run.keys.dead)
    return [pb.DeadLetter.FromString(fields[b"p"]) for _, fields in entries]
