"""Groups on their way, and at every kind of end."""

from routershift.v1 import trajectory_pb2 as pb
from shared.streams.consumer import End, Entry
from shared.streams.keys import Stream
from shared.streams.run import Run

GROUP = 4


def prompt(index: int) -> pb.Prompt:
    return pb.Prompt(prompt_id=f"{index:08d}", text="1,2,3:6=", sampling=pb.SamplingParams(n=GROUP))


def scored(index: int, size: int = 10) -> pb.TrajectoryGroup:
    made = pb.TrajectoryGroup(prompt=prompt(index))
    made.trajectories.add().completion.text = "x" * size
    return made


async def move(run: Run, source: Stream, destination: Stream, count: int, size: int = 10) -> None:
    reader = run.consumer(source)
    for entry in await reader.read(count):
        await reader.hand_over(entry, destination, scored(int(entry.group[:8]), size))


async def end(run: Run, source: Stream, count: int, how: End) -> list[Entry]:
    reader = run.consumer(source)
    entries = await reader.read(count)
    for entry in entries:
        await reader.end(entry, how)
    return entries


async def a_run_of_every_kind(run: Run) -> None:
    """0 is trained, 1 dropped, 2 dead; 3 is scored, 4 generated and 5 prompted."""
    for i in range(6):
        await run.admit(i, prompt(i), 100)
    await move(run, Stream.PROMPTS, Stream.ROLLOUTS, 5)
    await move(run, Stream.ROLLOUTS, Stream.SCORED, 4)
    await end(run, Stream.SCORED, 1, End.trained(7))
    await end(run, Stream.SCORED, 1, End.dropped("stale"))
    reader = run.consumer(Stream.SCORED)
    (entry,) = await reader.read(1)
    await reader.bury(entry, "bad_trajectory", "for the test")
