"""A run in Redis Cluster: all of its keys are on one node, which is found, and found again when it is another."""

import subprocess
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from services.cli.commands.functions import functions
from services.cli.local.redis import find_server
from shared.errors import PreconditionError
from shared.settings import RedisSettings, StreamSettings
from shared.streams.audit import audit
from shared.streams.connection import connect
from shared.streams.consumer import End
from shared.streams.functions import library
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.redis_nodes import start, until
from tests.support.runs import prompt
from tests.support.torchrun import free_port

PRIMARIES, SLOTS = 3, 16_384
SETTINGS = StreamSettings(block_seconds=0.05, idle_seconds=2.0, consumer="one", inline_bytes=1 << 10)


@dataclass(frozen=True)
class Cluster:
    """Three primaries, and a replica of each."""

    nodes: tuple[Redis, ...]  # primaries, then their replicas
    ports: tuple[int, ...]
    processes: tuple["subprocess.Popen[bytes]", ...]

    def settings(self, *ports: int, **changes: object) -> RedisSettings:
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports or self.ports)
        values: dict[str, object] = {"url": f"redis+cluster://{hosts}", "outage_seconds": 60.0}
        return RedisSettings.model_validate(values | changes)

    async def owner(self, run: Run) -> int:
        """Which node has the keys of a run. Raises AssertionError where several have some."""
        found = [i for i in range(PRIMARIES) if await self.nodes[i].keys(f"{{{run.keys.run}}}:*")]
        (index,) = found
        return index


@asynccontextmanager
async def cluster() -> AsyncIterator[Cluster]:
    ports, buses = (tuple(free_port() for _ in range(2 * PRIMARIES)) for _ in range(2))
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        common = (
            'save ""', "cluster-enabled yes", "cluster-node-timeout 1000", "cluster-replica-validity-factor 0",
            "repl-diskless-sync-delay 0",
        )  # fmt: skip
        processes = [
            start(stack, Path(name) / str(port), find_server(), f"port {port}", f"cluster-port {bus}", *common)
            for port, bus in zip(ports, buses, strict=True)
        ]
        nodes = tuple(Redis(port=port) for port in ports)
        await join(nodes, ports, buses)
        yield Cluster(nodes, ports, tuple(processes))
        for node in nodes:
            await node.aclose()


async def join(nodes: Sequence[Redis], ports: Sequence[int], buses: Sequence[int]) -> None:
    """Makes a Cluster of them; each primary has a third of the slots."""
    for node in nodes:
        await until(node.ping)
    for i, node in enumerate(nodes[:PRIMARIES]):
        await command(node, "ADDSLOTSRANGE", i * SLOTS // PRIMARIES, (i + 1) * SLOTS // PRIMARIES - 1)
        await command(node, "SET-CONFIG-EPOCH", i + 1)
    for port, bus in zip(ports[1:], buses[1:], strict=True):
        await command(nodes[0], "MEET", "127.0.0.1", port, bus)

    async def told(node: Redis, name: str, text: str) -> bool:
        return text in (await command(node, name)).decode()

    async def follows(node: Redis) -> bool:
        return bool((await node.info("replication")).get("master_link_status") == "up")

    for primary, replica in zip(nodes[:PRIMARIES], nodes[PRIMARIES:], strict=True):
        identity = (await command(primary, "MYID")).decode()
        await until(partial(told, replica, "NODES", identity))
        await command(replica, "REPLICATE", identity)
    for node in nodes:
        await until(partial(told, node, "INFO", "cluster_state:ok"))
    for node in nodes[PRIMARIES:]:
        await until(partial(follows, node))


async def command(node: Redis, name: str, *arguments: Any) -> Any:
    """The answer of a command of CLUSTER as it comes."""
    answer: Any = await node.execute_command("CLUSTER", name, *arguments)  # type: ignore[no-untyped-call]
    return answer


async def test_a_run_lives_on_one_node_and_goes_on_where_that_is_replaced() -> None:
    async with cluster() as servers:
        await functions(servers.settings())
        for node in servers.nodes:
            assert [each[1] for each in await node.function_list()] == [library().name.encode()]
        redis = await connect(servers.settings())
        run = Run(redis, "clustered", SETTINGS)
        await run.open()
        await run.claim_format()
        reader, last = run.consumer(Stream.PROMPTS), run.consumer(Stream.ROLLOUTS)
        for i in range(4):
            assert await run.admit(i, prompt(i), 100) == "ok"
        for entry in await reader.read(4):
            await reader.hand_over(entry, Stream.ROLLOUTS, pb.TrajectoryGroup(prompt=pb.Prompt(text="x" * 5_000)))
        owner = await servers.owner(run)

        servers.processes[owner].kill()
        for entry in await last.read(2):
            assert await last.end(entry, End.trained(1))
        for i in range(4, 8):
            assert await run.admit(i, prompt(i), 100) in ("ok", "done")
        found = await audit(redis, run, None)
        assert found.problems == {}
        assert found.ledger.balanced
        assert (await run.memory()).used > 0
        await redis.aclose()


async def test_the_url_of_one_node_is_no_url_of_a_cluster() -> None:
    async with cluster() as servers:
        redis = await connect(servers.settings())
        run = Run(redis, "clustered", SETTINGS)
        await run.open()
        other = servers.ports[(await servers.owner(run) + 1) % PRIMARIES]
        await redis.aclose()
        redis = await connect(RedisSettings.model_validate({"url": f"redis://127.0.0.1:{other}"}))
        with pytest.raises(PreconditionError, match=r"names one node of a Cluster; write redis\+cluster://"):
            await Run(redis, "clustered", SETTINGS).open()
        await redis.aclose()
