"""Each stage of the pipeline alone, as a service with its streams: the bench stands for all others.

Nothing else computes meanwhile, so a stage alone has at least the cores that it has in the pipeline.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from routershift import wire
from routershift.v1 import trajectory_pb2 as pb
from services.cli.recipe import Recipe
from services.curriculum.problems import Problem
from services.curriculum.prompts import make_prompt
from shared.errors import UnavailableError
from shared.settings import RedisSettings, StreamSettings
from shared.streams.connection import connect
from shared.streams.entries import End
from shared.streams.keys import Stream
from shared.streams.run import Run
from shared.tracking import records
from tests.bench.training import processes
from tests.bench.training.judging import Judge
from tests.bench.training.ours import FREE_PORTS, REPOSITORY
from tests.support.redis_server import Server

RUN = "stage"
_LOOK_SECONDS = 0.02
_STREAM_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Alone:
    """What a stage made of its work."""

    rollouts_per_second: float
    tokens_per_second: float
    cpu_seconds_per_rollout: float


@dataclass(frozen=True, slots=True)
class Work:
    """Groups to sample, in this order."""

    recipe_file: Path
    recipe: Recipe
    settings: Mapping[str, object]  # those of the pipeline, on top of the recipe
    problems: Sequence[Problem]
    max_tokens: Sequence[int] = ()  # of the responses to each; empty: as in the recipe

    def prompt(self, index: int) -> pb.Prompt:
        """As the curriculum would admit it; after the last problem comes the first again."""
        place = index % len(self.problems)
        prompt = make_prompt(index, self.problems[place], self.recipe.run, self.recipe.rollout)
        prompt.run_id = RUN
        if self.max_tokens:
            prompt.sampling.max_tokens = self.max_tokens[place]
        return prompt


def generation(work: Work, folder: Path) -> tuple[Alone, list[pb.TrajectoryGroup]]:
    """Samples groups with the weights of the start, and gives them too.

    As many prompts are in flight as the pipeline's tickets allow, from the beginning to the end, so that long responses
    are never alone: the last prompts are not waited for. The clock runs from the moment when as many groups have come
    as are in flight.
    """
    return asyncio.run(_generation(work, folder))


async def _generation(work: Work, folder: Path) -> tuple[Alone, list[pb.TrajectoryGroup]]:
    tickets = work.recipe.run.tickets
    count = len(work.problems) - tickets
    warmup = min(tickets, count // 2)
    groups: list[pb.TrajectoryGroup] = []
    async with opened(folder) as (run, url):
        with service("generation", work, {}, folder, url) as process:
            reader, admitted = run.consumer(Stream.ROLLOUTS), 0
            began = spent = 0.0
            while len(groups) < count:
                while admitted < len(groups) + tickets:
                    await run.admit(admitted, work.prompt(admitted), 2 * tickets)
                    admitted += 1
                for entry in await reader.read(count - len(groups)):
                    groups.append(pb.TrajectoryGroup.FromString(entry.payload))
                    await reader.end(entry, End.dropped("bench"))
                    if len(groups) == warmup:
                        began, spent = time.perf_counter(), cpu_of(process)
                must_live(process, folder, "generation")
            seconds, spent = time.perf_counter() - began, cpu_of(process) - spent
    counted = groups[warmup:]
    rollouts = sum(len(group.trajectories) for group in counted)
    return Alone(rollouts / seconds, sum(map(tokens_of, counted)) / seconds, spent / rollouts), groups


def learner(work: Work, groups: Sequence[pb.TrajectoryGroup], judge: Judge, folder: Path, steps: int) -> Alone:
    """Trains on recorded groups, of which those with equal rewards are dropped as in the pipeline.

    They are on its stream before it starts, over and over until there are enough for `steps`. The clock runs from the
    end of the first step. Their tokens become ever older; `run.max_staleness` is set so that none is dropped for that.
    """
    scored = [_scored(group, judge) for group in groups]
    useful = [group for group in scored if len({t.score.reward for t in group.trajectories}) > 1]
    if not useful:
        raise UnavailableError("no recorded group has unequal rewards: sample more of them")
    return asyncio.run(_learner(work, scored, folder, steps))


async def _learner(work: Work, scored: Sequence[pb.TrajectoryGroup], folder: Path, steps: int) -> Alone:
    needed, per_step = steps * work.recipe.run.groups_per_step, work.recipe.rollout.n * work.recipe.run.groups_per_step
    staleness = max(steps, work.recipe.run.max_staleness)
    settings = {"run.steps": steps, "run.max_staleness": staleness, "run.evaluate_every": 0}
    async with opened(folder) as (run, url):
        index = useful = 0
        prompts, rollouts = run.consumer(Stream.PROMPTS), run.consumer(Stream.ROLLOUTS)
        while useful < needed:
            group = pb.TrajectoryGroup()
            group.CopyFrom(scored[index % len(scored)])
            group.prompt.prompt_id = f"{index:08d}"
            for trajectory in group.trajectories:
                trajectory.id.prompt_id = group.prompt.prompt_id
            await run.admit(index, group.prompt, 1 << 30)
            for entry in await prompts.read(1):
                await prompts.hand_over(entry, Stream.ROLLOUTS, group)
            for entry in await rollouts.read(1):
                await rollouts.hand_over(entry, Stream.SCORED, group)
            useful += len({trajectory.score.reward for trajectory in group.trajectories}) > 1
            index += 1
        with service("learner", work, settings, folder, url) as process:
            tail = records.Tail(folder / RUN / records.LEARNER)
            taken: list[dict[str, object]] = []
            spent = 0.0
            while not taken or taken[-1]["step"] != steps:
                await asyncio.sleep(_LOOK_SECONDS)
                taken += tail.read()
                spent = spent or (cpu_of(process) if taken else 0.0)
                must_live(process, folder, "learner")
            spent = cpu_of(process) - spent
    first, last = (datetime.fromisoformat(str(taken[i]["time"])) for i in (0, -1))
    seconds, trained = (last - first).total_seconds(), (steps - 1) * per_step
    tokens = sum(float(str(record["tokens"])) for record in taken[1:])
    return Alone(trained / seconds, tokens / seconds, spent / trained)


def tokens_of(group: pb.TrajectoryGroup) -> int:
    """Response tokens."""
    return sum(wire.decode_completion(t.completion).token_ids.size for t in group.trajectories)


def _scored(group: pb.TrajectoryGroup, judge: Judge) -> pb.TrajectoryGroup:
    scored = pb.TrajectoryGroup()
    scored.CopyFrom(group)
    scored.scored_at.GetCurrentTime()
    reference = wire.decode_struct(group.prompt.reference)
    for trajectory in scored.trajectories:
        verdict = judge.verdict(group.prompt.text, trajectory.completion.text, reference)
        score = pb.Score(outcome=pb.OUTCOME_SCORED, verifier=group.prompt.verifier, reward=verdict.reward)
        score.parts.update(verdict.parts)
        trajectory.score.CopyFrom(score)
    return scored


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[tuple[Run, str]]:
    """A run on a Redis of its own, and the URL of that."""
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as stack:
        short = stack.enter_context(tempfile.TemporaryDirectory(prefix="routershift-"))
        server = stack.enter_context(Server(folder, Path(short) / "r.sock", appendonly=False))
        redis = await connect(RedisSettings.model_validate({"url": server.url}))
        try:
            run = Run(redis, RUN, StreamSettings(max_bytes=_STREAM_BYTES, block_seconds=0.05))
            await run.open()
            yield run, server.url
        finally:
            await redis.aclose()


@contextlib.contextmanager
def service(
    name: str, work: Work, settings: Mapping[str, object], folder: Path, url: str
) -> Iterator["subprocess.Popen[bytes]"]:
    own = {
        **work.settings,
        **FREE_PORTS,
        "run.id": RUN,
        "run.folder": folder,
        "run.model": work.recipe.run.model_folder().absolute(),
        "streams.max_bytes": _STREAM_BYTES,
        **settings,
    }
    flags = [part for key, value in own.items() for part in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "services.cli.main", "serve", name, "--recipe", str(work.recipe_file), *flags]
    with _log(folder, name).open("wb") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env={**os.environ, "REDIS_URL": url}, stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def must_live(process: "subprocess.Popen[bytes]", folder: Path, name: str) -> None:
    if process.poll() is not None:
        said = _log(folder, name).read_text(errors="replace").strip().splitlines() or ["nothing"]
        raise UnavailableError(f"{name} ended with code {process.returncode}: {said[-1]}")


def _log(folder: Path, service: str) -> Path:
    return folder / f"{service}.log"


def cpu_of(process: "subprocess.Popen[bytes]") -> float:
    root = psutil.Process(process.pid)
    return sum(map(processes.with_ended, [root, *root.children(recursive=True)]))
