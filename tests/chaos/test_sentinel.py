"""The primary dies in the middle of traffic and its replica takes over: what was acknowledged is there."""

import asyncio
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from services.cli.local.redis import find_server
from shared.errors import UnavailableError
from shared.settings import RedisSettings, StreamSettings
from shared.streams.audit import audit
from shared.streams.connection import connect
from shared.streams.consumer import End, Entry
from shared.streams.keys import Stream
from shared.streams.run import Run
from tests.support.certificates import Authority
from tests.support.redis_nodes import start, until
from tests.support.redis_server import server_with_tls
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
    tls: Mapping[str, object]  # what a client needs of it

    def settings(self, **changes: object) -> RedisSettings:
        scheme = "rediss+sentinel" if self.tls else "redis+sentinel"
        url = f"{scheme}://127.0.0.1:{free_port()},127.0.0.1:{self.sentinel}/runs/0"  # the first is not there
        values: dict[str, object] = {"url": url, "durability": "replicas", "outage_seconds": 60.0}
        values |= {"password_file": self.secrets / REDIS, "sentinel_password_file": self.secrets / SENTINEL}
        return RedisSettings.model_validate(values | dict(self.tls) | changes)


@asynccontextmanager
async def watched(replicas: int, tls: bool = False) -> AsyncIterator[Watched]:
    primary, sentinel = free_port(), free_port()
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, processes = Path(name), {}
        for password in (REDIS, SENTINEL):
            (folder / password).write_text(f"{password}\n")
        binary, secured, shown = find_server(), Secured(), dict[str, object]()
        if tls:
            binary, authority = server_with_tls(), Authority.make(folder / "tls")
            secured = Secured.by(authority)
            certificate, key = authority.sign("client")
            shown = {"authority": authority.certificate, "certificate": certificate, "key": key}
        durable = ("appendonly yes", "appendfsync always", 'save ""', "repl-diskless-sync-delay 0")
        locked = (f"requirepass {REDIS}", f"masterauth {REDIS}", *secured.lines)
        processes["primary"] = start(stack, folder / "primary", binary, *secured.port(primary), *durable, *locked)
        for i in range(replicas):
            port = free_port()
            lines = (*secured.port(port), *durable, *locked, f"replicaof 127.0.0.1 {primary}")
            processes[f"replica-{i}"] = start(stack, folder / f"replica-{i}", binary, *lines)
            async with Redis(port=port, password=REDIS, **secured.client) as client:
                await until(partial(_follows, client))
        options = ("down-after-milliseconds runs 500", "failover-timeout runs 5000", f"auth-pass runs {REDIS}")
        lines = (
            *secured.port(sentinel),
            *secured.lines,
            f"sentinel monitor runs 127.0.0.1 {primary} 1",
            *(f"sentinel {each}" for each in options),
            f"requirepass {SENTINEL}",
        )
        processes["sentinel"] = start(stack, folder / "sentinel", binary, *lines, sentinel=True)
        async with Redis(port=sentinel, password=SENTINEL, **secured.client) as client:
            await until(partial(_knows, client, replicas))
        yield Watched(sentinel, folder, processes, shown)


@dataclass(frozen=True)
class Secured:
    """How servers and a client of a test speak, by default in clear text."""

    lines: Sequence[str] = ()  # of redis.conf
    client: Mapping[str, Any] = field(default_factory=dict)  # options of redis-py

    @classmethod
    def by(cls, authority: Authority) -> "Secured":
        """Over TLS alone, each side with a certificate of this authority."""
        certificate, key = authority.sign("server")
        files = {"tls-cert-file": certificate, "tls-key-file": key, "tls-ca-cert-file": authority.certificate}
        lines = (*(f"{name} {file}" for name, file in files.items()), "tls-auth-clients yes", "tls-replication yes")
        shown = {"ssl_ca_certs": str(authority.certificate), "ssl_certfile": str(certificate), "ssl_keyfile": str(key)}
        return cls(lines, {"ssl": True, **shown})

    def port(self, port: int) -> Sequence[str]:
        """The lines with which a server listens there."""
        return ("port 0", f"tls-port {port}") if self.client else (f"port {port}",)


async def _follows(client: Redis) -> bool:
    return bool((await client.info("replication")).get("master_link_status") == "up")


async def _knows(client: Redis, replicas: int) -> bool:
    masters: Any = await client.sentinel_masters()
    return any(int(state["num-slaves"]) >= replicas for state in masters.values())


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


def lagging() -> float:
    """How often a write was not confirmed, as the metric counts it."""
    return REGISTRY.get_sample_value("routershift_redis_retries_total", {"reason": "lagging"}) or 0.0


async def test_a_replica_that_lags_is_waited_for() -> None:
    async with watched(replicas=1) as servers:
        redis = await connect(servers.settings(outage_seconds=3.0, timeout_seconds=2.0))
        run = Run(redis, "lagging", SETTINGS)
        await run.open()
        assert await run.admit(0, prompt(0), 10) == "ok"
        replica, before = servers.processes["replica-0"], lagging()
        replica.send_signal(19)  # SIGSTOP
        try:
            with pytest.raises(UnavailableError, match="0 of 1 replicas of Redis have what it did"):
                await run.admit(1, prompt(1), 10)
            assert lagging() > before
            redis.outage_seconds = 60.0
            waiting = asyncio.create_task(run.admit(2, prompt(2), 10))
            await asyncio.sleep(0.5)
            assert not waiting.done()
        finally:
            replica.send_signal(18)  # SIGCONT
        assert await asyncio.wait_for(waiting, 20) in ("ok", "done")
        await redis.aclose()


async def test_sentinels_and_redis_speak_tls_alone_and_ask_for_certificates() -> None:
    async with watched(replicas=1, tls=True) as servers:
        redis = await connect(servers.settings(durability="none"))  # no replica is left that could confirm
        run = Run(redis, "locked", SETTINGS)
        await run.open()
        assert await run.admit(0, prompt(0), 10) == "ok"
        servers.processes["primary"].kill()
        assert await run.admit(1, prompt(1), 10) in ("ok", "done")
        await redis.aclose()
        with pytest.raises(UnavailableError, match="no Redis answers there"):
            await connect(servers.settings(certificate=None, key=None, connect_seconds=2.0))
