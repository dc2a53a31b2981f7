"""The whole hand-over, in messages and MB a second, over raw redis-py doing the same stream commands."""

import argparse
import asyncio
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from routershift import wire
from routershift.v1 import trajectory_pb2 as pb
from shared.settings import RedisSettings, StreamSettings
from shared.streams.connection import connect, server_release
from shared.streams.consumer import Entry
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.bench.timing import interleaved
from tests.support.redis_server import Server

SIZES = (20_000, 200_000, 2_000_000)
_BYTES = 64_000_000  # of each turn, at least a few messages and at most so many
_FEWEST, _MOST = 16, 400
_SAMPLES = 8
_SCORE = pb.Score(outcome=pb.OUTCOME_SCORED, reward=1, parts={"correct": 1}, verifier="bench")
QUICK = {"rounds": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=7, help="paired turns that count, for each size")
    parser.add_argument("--at-once", type=int, default=8, help="messages under way at the same time")
    parser.add_argument("--redis", help="URL of a Redis to use; default: one of our own on a Unix socket, without AOF")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """A message goes onto a stream, is read there, and goes on to the next.

    `raw` is redis-py with MULTI and no more than XADD, XREADGROUP, XACK and XDEL: no account of trajectories and bytes,
    no bound, no memory of what was settled, no check that the entry is still there. Both serialize the message, raw
    once more for the last stream, where ours are the bytes that came, with scores behind them.

    Raises:
        MissingDependencyError: there is no redis-server to start.
    """
    with tempfile.TemporaryDirectory(prefix="routershift-") as folder:
        if arguments.redis:
            return _result(arguments, arguments.redis)
        with Server(Path(folder), Path(folder) / "r.sock", appendonly=False) as server:
            return _result(arguments, server.url)


def _result(arguments: argparse.Namespace, url: str) -> dict[str, Any]:
    loop = asyncio.new_event_loop()
    try:
        return {
            "server": loop.run_until_complete(_server(url)),
            "sizes": {str(size): _measure(loop, arguments, url, size) for size in SIZES},
        }
    finally:
        loop.close()


async def _server(url: str) -> str:
    redis = await connect(RedisSettings(url=url))
    try:
        return str(await server_release(redis))
    finally:
        await redis.aclose()


def _measure(loop: asyncio.AbstractEventLoop, arguments: argparse.Namespace, url: str, size: int) -> dict[str, Any]:
    messages = max(_FEWEST, min(_MOST, _BYTES // size))
    redis = loop.run_until_complete(connect(RedisSettings(url=url)))
    group, raw_redis = _group(size), Redis.from_url(url, protocol=2)
    paths: dict[str, _Ours | _Raw] = {"routershift": _Ours(redis, group), "raw": _Raw(raw_redis, group)}
    timings = interleaved(
        {
            name: lambda path=path: loop.run_until_complete(_turn(path, messages, arguments.at_once))  # type: ignore[misc]
            for name, path in paths.items()
        },
        arguments.rounds,
        prepare=lambda name: loop.run_until_complete(paths[name].prepare(messages)),
    )
    for client in (redis, raw_redis):
        loop.run_until_complete(client.aclose())
    ratio, rate = timings.ratio("routershift", "raw"), timings.rate("routershift", messages)
    return {
        "ratio": ratio.median,
        "mb_per_second": rate.median * size / 1e6,
        "messages_per_second": rate.median,
        "raw_messages_per_second": timings.rate("raw", messages).median,
        "ratio_spread": asdict(ratio),
        "cpu": timings.cpu("raw", "message", messages),
        "messages": messages,
    }


async def _turn(path: "_Ours | _Raw", messages: int, at_once: int) -> None:
    for start in range(0, messages, at_once):
        await path.pass_on(min(at_once, messages - start))


def _group(size: int) -> pb.TrajectoryGroup:
    """A group of about so many bytes, most of them in router traces, as in a run."""
    group = pb.TrajectoryGroup()
    for _ in range(_SAMPLES):
        group.trajectories.add().completion.router_trace.expert_ids.data = bytes(size // _SAMPLES)
    return group


class _Ours:
    """Prompts over rollouts to scored, as the services do it."""

    def __init__(self, redis: Redis, group: pb.TrajectoryGroup) -> None:
        self._redis = redis
        self._group = group

    async def prepare(self, messages: int) -> None:
        """Nothing but as many prompts, delivered."""
        await self._redis.flushdb()
        run = Run(self._redis, "bench", StreamSettings(max_bytes=1 << 30))
        await run.open()
        self._prompts, self._rollouts = run.consumer(Stream.PROMPTS), run.consumer(Stream.ROLLOUTS)
        for i in range(messages):
            await run.admit(i, pb.Prompt(prompt_id=str(i), sampling=pb.SamplingParams(n=_SAMPLES)), messages)
        self._entries: list[Entry] = []
        while len(self._entries) < messages:
            self._entries += await self._prompts.read(messages)

    async def pass_on(self, count: int) -> None:
        taken = [self._entries.pop() for _ in range(count)]
        await asyncio.gather(*(self._prompts.hand_over(entry, Stream.ROLLOUTS, self._group) for entry in taken))
        read: list[Entry] = []
        while len(read) < count:
            read += await self._rollouts.read(count - len(read))
        scores = wire.encode_scores([_SCORE] * _SAMPLES)
        await asyncio.gather(*(self._rollouts.pass_on(entry, Stream.SCORED, scores) for entry in read))


class _Raw:
    """The same with redis-py alone."""

    def __init__(self, redis: Redis, group: pb.TrajectoryGroup) -> None:
        self._redis = redis
        self._group = group

    async def prepare(self, messages: int) -> None:
        """Nothing but as many prompts, delivered."""
        await self._redis.flushdb()
        for stream in ("prompts", "rollouts"):
            await self._redis.xgroup_create(stream, "readers", id="0", mkstream=True)
        for i in range(messages):
            await self._redis.xadd("prompts", {"g": str(i), "n": _SAMPLES, "p": b"prompt"})
        self._ids = [id_ for id_, _ in await self._read("prompts", messages)]

    async def pass_on(self, count: int) -> None:
        taken = [self._ids.pop() for _ in range(count)]
        await asyncio.gather(*(self._replace("prompts", id_, "rollouts") for id_ in taken))
        read: list[Any] = []
        while len(read) < count:
            read += await self._read("rollouts", count - len(read))
        await asyncio.gather(*(self._replace("rollouts", id_, "scored") for id_, _ in read))

    async def _read(self, stream: str, count: int) -> list[Any]:
        answer: Any = await self._redis.xreadgroup("readers", "one", {stream: ">"}, count=count, block=500)
        return list(answer[0][1]) if answer else []

    async def _replace(self, source: str, id_: bytes, destination: str) -> None:
        payload = self._group.SerializeToString()
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.xadd(destination, {"g": "group", "n": _SAMPLES, "p": payload})
            pipe.xack(source, "readers", id_)
            pipe.xdel(source, id_)
            await pipe.execute()
