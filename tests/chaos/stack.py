"""A whole run under `routershift up`, with a proxy before its Redis, as the chaos suite sees it: from outside."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc
import psutil
from grpc_health.v1 import health_pb2, health_pb2_grpc

from routershift.client.channel import open_channel
from shared.settings import SERVICES
from shared.tracking import records
from tests.chaos import account
from tests.chaos.clock import Clocks
from tests.chaos.proxy import Proxy
from tests.chaos.redis_server import RedisServer
from tests.support import processes

RECIPE = Path(__file__).parents[2] / "deploy/recipes/countdown.toml"
RUN = "chaos"
IDLE_SECONDS = 5.0
LIVENESS_SECONDS = 10.0  # longer than a process is stopped that comes back
START_SECONDS = 180.0
_DISK_BYTES = 192 << 20
_NOTHING = b"0-0"  # the last id of a stream that never had an entry

SETTINGS: Mapping[str, object] = {
    "run.id": RUN,
    "run.steps": 1_000_000,
    "run.groups_per_step": 8,
    "run.evaluate_every": 10,
    "redis.timeout_seconds": 4,
    "streams.idle_seconds": IDLE_SECONDS,
    "streams.max_bytes": 8 << 20,
    "supervisor.liveness_seconds": LIVENESS_SECONDS,
    "supervisor.max_deaths": 1_000_000,
    "curriculum.evaluation.problems": 16,
    "curriculum.evaluation.sampling.n": 1,
    "learner.checkpoints.every": 2,
    **{f"{service}.{port}": 0 for service in SERVICES for port in ("port", "metrics_port")},
}


@dataclass(frozen=True, slots=True)
class Marks:
    """What grows while the run goes on."""

    steps: int  # lines of the learner's records
    newest: tuple[tuple[bytes, ...], ...]  # the last ids that the streams of each stage gave

    def passed(self, before: "Marks") -> bool:
        """A prompt was admitted, a group generated, a group scored and a step done.

        A stage that the groups of this run do not go through has never had one.
        """
        return self.steps > before.steps and all(
            now != then or set(now) == {_NOTHING} for now, then in zip(self.newest, before.newest, strict=True)
        )


class Stack:
    """Redis, proxy and services. `disk`: a small file system of its own holds the run's folder."""

    def __init__(
        self, folder: Path, recipe: Path, redis: RedisServer, proxy: Proxy, clocks: Clocks, disk: bool
    ) -> None:
        self.folder = folder / "runs" / RUN
        self.recipe = recipe
        self.redis = redis
        self.proxy = proxy
        self.clocks = clocks
        self.disk = disk
        self.groups_per_step = 0
        self.lost = 0  # acknowledged writes that a killed Redis did not have when it was back
        self._work = folder
        self._mark = uuid.uuid4().hex
        self._environment = {
            **{k: v for k, v in os.environ.items() if k != "REDIS_URL" and not k.startswith("ROUTERSHIFT_")},
            **clocks.environment,
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # agents are started by name
            **processes.marked(self._mark),
        }

    def start(self, settings: Mapping[str, object]) -> None:
        self.groups_per_step = int(str(settings["run.groups_per_step"]))
        self.flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        self.up = self.routershift("up", "--recipe", str(self.recipe), *self.flags, log="up")

    def routershift(self, *arguments: str, log: str, direct: bool = False) -> "subprocess.Popen[bytes]":
        """Starts a command of the command line in the folder that has `runs`. Direct: not through the proxy."""
        url = f"redis://127.0.0.1:{self.redis.port if direct else self.proxy.port}/0"
        with (self._work / f"{log}.log").open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "services.cli.main", *arguments],
                cwd=self._work,
                env={**self._environment, "REDIS_URL": url},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def said(self, log: str = "up") -> str:
        """On stdout and stderr, by `up` and its services or by another command."""
        return (self._work / f"{log}.log").read_text(encoding="utf-8", errors="replace")

    def processes(self) -> dict[str, psutil.Process]:
        """The processes of the services that run, by name."""
        found: dict[str, psutil.Process] = {}
        for child in psutil.Process(self.up.pid).children() if self.up.poll() is None else ():
            with contextlib.suppress(psutil.NoSuchProcess):
                command = " ".join(child.cmdline())
                found |= {service: child for service in SERVICES if f"serve {service}" in command}
        return found

    async def alive(self, service: str) -> psutil.Process:
        """Its process, once there is one. Raises AssertionError where none comes."""
        deadline = time.monotonic() + START_SECONDS
        while (process := self.processes().get(service)) is None:
            assert self.up.poll() is None, f"`up` ended with code {self.up.returncode}: {self.said()[-2000:]}"
            assert time.monotonic() < deadline, f"{service} was not started again: {self.said()[-2000:]}"
            await asyncio.sleep(0.1)
        return process

    def owner(self, port: int) -> str | None:
        """The service whose process has this local port."""
        for service, process in self.processes().items():
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(connection.laddr.port == port for connection in process.net_connections("tcp4")):
                    return service
        return None

    def services(self) -> dict[str, dict[str, str]]:
        """The addresses of the services of this run; none before they are started."""
        try:
            found: dict[str, dict[str, str]] = json.loads((self.folder / "endpoints.json").read_text(encoding="utf-8"))[
                "services"
            ]
        except (FileNotFoundError, ValueError):
            return {}
        return found

    async def serving(self) -> bool:
        """Whether every service says so."""
        if not (servers := self.services()):
            return False
        return all(await asyncio.gather(*(_serving(server["grpc"]) for server in servers.values())))

    async def marks(self) -> Marks:
        newest = []
        for stage in account.STAGES:
            found = [await self.redis.client.xinfo_stream(f"{{{RUN}}}:{stream}") for stream in stage]
            newest.append(tuple(info["last-generated-id"] for info in found))
        return Marks(len(records.Tail(self.folder / records.LEARNER).read()), tuple(newest))

    async def account(self) -> account.Account:
        return await account.read(self.redis.client, RUN)

    async def stop(self) -> int:
        """SIGTERM; the exit code. Raises AssertionError where it does not come."""
        self.up.send_signal(signal.SIGTERM)
        try:
            return await asyncio.to_thread(self.up.wait, 90)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"`up` did not stop: {self.said()[-2000:]}") from None

    def left(self) -> list[psutil.Process]:
        """Processes of ours that run, `up` included."""
        return processes.running(self._mark)

    def close(self) -> None:
        processes.kill(self._mark)
        self.up.wait()


@contextlib.asynccontextmanager
async def running(
    appendfsync: str, settings: Mapping[str, object], recipe: Callable[[Path], Path] = lambda _: RECIPE
) -> AsyncIterator[Stack]:
    """Starts everything, and leaves nothing of it. The first step is done when the block begins.

    Args:
        appendfsync: of Redis.
        settings: on top of SETTINGS, by their names in a recipe.
        recipe: gives the recipe of the run, whose files it may write to the folder in which the run is started.
    """
    with tempfile.TemporaryDirectory(prefix="routershift-chaos-") as name, _small_disk(Path(name) / "runs") as disk:
        folder = Path(name)
        clocks = Clocks(folder / "clocks")
        redis = RedisServer(folder / "redis", appendfsync, {**os.environ, **clocks.environment})
        await redis.start()
        stack: Stack | None = None
        try:
            async with Proxy(redis.port, lambda port: stack.owner(port) if stack else None) as proxy:
                stack = Stack(folder, recipe(folder), redis, proxy, clocks, disk)
                stack.start({**SETTINGS, **settings})
                try:
                    await _first_step(stack)
                    yield stack
                finally:
                    stack.close()
        finally:
            await redis.close()


@contextlib.contextmanager
def _small_disk(folder: Path) -> Iterator[bool]:
    """A file system of its own in memory, which can be filled; only root may make one. Gives whether there is one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_BYTES}", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def _first_step(stack: Stack) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not records.read(stack.folder / records.LEARNER):
        assert stack.up.poll() is None, stack.said()
        assert time.monotonic() < deadline, f"no step within {START_SECONDS} s: {stack.said()[-2000:]}"
        await asyncio.sleep(0.2)


async def _serving(address: str) -> bool:
    async with open_channel(address) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=2.0)
        except grpc.aio.AioRpcError:
            return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
