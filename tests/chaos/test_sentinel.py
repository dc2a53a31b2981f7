"""The primary dies in the middle of traffic and its replica takes over: what was acknowledged is there."""

import asyncio
import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from routershift.v1 import trajectory_pb2 as pb
from services.cli.local.redis import find_server
from shared.errors import UnavailableError
from shared.settings import RedisSettings, StreamSettings
from shared.streams.audit import audit
from shared.streams.connection import connect
from shared.streams.consumer import End, Entry
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.runs import prompt
from tests.support.torchrun import free_port

GROUPS = 60
REDIS, SENTINEL = "password-of-redis", "password-of-sentinel"
SETTINGS = StreamSettings(block_seconds=0.05, idle_seconds=2.0, consumer="one")


@dataclass(frozen=True)
class Watched:
    """A primary, its replicas and a Sentinel, each a process."""

    sentinel: int  # its port
    secrets: Path  # a folder with the password of Redis, and the Sentinel's
    processes: dict[str, "subprocess.Popen[bytes]"]

    def settings(self, **changes: object) -> RedisSettings:
        url = f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{self.sentinel}/runs/0"  # the first is not there
        values: dict[str, object] = {"url": url, "durability": "replicas", "outage_seconds": 60.0}
        values |= {"password_file": self.secrets / REDIS, "sentinel_password_file": self.secrets / SENTINEL}
        return RedisSettings.model_validate(values | changes)


@asynccontextmanager
async def watched(replicas: int) -> AsyncIterator[Watched]:
    primary, sentinel = free_port(), free_port()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        processes = {}
        for password in (REDIS, SENTINEL):
            (Path(name) / password).write_text(f"{password}\n")

        def start(role: str, port: int, *options: str) -> None:
            folder = Path(name) / role
            folder.mkdir()
            (folder / "redis.conf").write_text("\n".join((f"port {port}", "bind 127.0.0.1", f"dir {folder}", *options)))
            command: Sequence[str] = [find_server(), str(folder / "redis.conf")]
            process = subprocess.Popen(
                [*command, *(["--sentinel"] if role == "sentinel" else [])], stdout=subprocess.DEVNULL
            )
            stack.callback(process.wait, 10)
            stack.callback(process.kill)
            processes[role] = process

        durable = ("appendonly yes", "appendfsync always", 'save ""', "repl-diskless-sync-delay 0")
        locked = (f"requirepass {REDIS}", f"masterauth {REDIS}")
        start("primary", primary, *durable, *locked)
        for i in range(replicas):
            port = free_port()
            start(f"replica-{i}", port, *durable, *locked, f"replicaof 127.0.0.1 {primary}")
            async with Redis(port=port, password=REDIS) as client, asyncio.timeout(20):
                while (await _link(client)) != "up":  # noqa: ASYNC110  # Redis has no event
                    await asyncio.sleep(0.05)
        options = ("down-after-milliseconds runs 500", "failover-timeout runs 5000", f"auth-pass runs {REDIS}")
        start(
            "sentinel",
            sentinel,
            f"sentinel monitor runs 127.0.0.1 {primary} 1",
            *(f"sentinel {each}" for each in options),
            f"requirepass {SENTINEL}",
        )
        async with Redis(port=sentinel, password=SENTINEL) as client, asyncio.timeout(20):
            while await _known_replicas(client) < replicas:  # noqa: ASYNC110  # Redis has no event
                await asyncio.sleep(0.05)
        yield Watched(sentinel, Path(name), processes)


async def _link(client: Redis) -> str:
    try:
        return str((await client.info("replication")).get("master_link_status"))
    except RedisError:
        return "none"


async def _known_replicas(client: Redis) -> int:
    try:
        masters: Any = await client.sentinel_masters()
        (state,) = masters.values()
    except (RedisError, ValueError):
        return 0
    return int(state["num-slaves"])


async def test_a_primary_that_dies_takes_nothing_with_it_that_was_acknowledged() -> None:
    async with watched(replicas=2) as servers:
        redis = await connect(servers.settings())
        run = Run(redis, "failing-over", SETTINGS)
        await run.open()
        admitted, ended = list[int](), list[str]()
        stop = asyncio.Event()
        reader, last = run.consumer(Stream.PROMPTS), run.consumer(Stream.ROLLOUTS)

        async def generate(entry: Entry) -> None:
            await reader.hand_over(entry, Stream.ROLLOUTS, pb.TrajectoryGroup(prompt=pb.Prompt(text="x" * 50_000)))

        async def train(entry: Entry) -> None:
            if await last.end(entry, End.trained(1)):
                ended.append(entry.group)
            if len(ended) >= GROUPS:
                stop.set()

        async def feed() -> None:
            for i in range(GROUPS):
                assert await run.admit(i, prompt(i), GROUPS) in ("ok", "done")
                admitted.append(i)
                if i == GROUPS // 3:
                    servers.processes["primary"].kill()

        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            tasks.create_task(feed())
            tasks.create_task(reader.each(generate, lambda: 8 - reader.held, stop))
            tasks.create_task(last.each(train, lambda: 8 - last.held, stop))
        found = await audit(redis, run, None)
        assert found.problems == {}
        assert found.ledger.balanced
        assert found.ledger.trained == GROUPS * prompt(0).sampling.n
        assert sorted(set(ended)) == sorted(ended)
        await redis.aclose()


async def test_a_replica_that_lags_is_waited_for() -> None:
    async with watched(replicas=1) as servers:
        redis = await connect(servers.settings(outage_seconds=3.0, timeout_seconds=2.0))
        run = Run(redis, "lagging", SETTINGS)
        await run.open()
        assert await run.admit(0, prompt(0), 10) == "ok"
        replica = servers.processes["replica-0"]
        replica.send_signal(19)  # SIGSTOP
        try:
            with pytest.raises(UnavailableError, match="0 of 1 replicas of Redis have what it did"):
                await run.admit(1, prompt(1), 10)
            redis.outage_seconds = 60.0
            waiting = asyncio.create_task(run.admit(2, prompt(2), 10))
            await asyncio.sleep(0.5)
            assert not waiting.done()
        finally:
            replica.send_signal(18)  # SIGCONT
        assert await asyncio.wait_for(waiting, 20) in ("ok", "done")
        await redis.aclose()
