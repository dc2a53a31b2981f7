"""What can go wrong, and where: each fault is made from outside of the processes, and ends before its function does."""

import asyncio
import errno
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import psutil

from shared.settings import SERVICES
from shared.streams.keys import READERS, Keys, Stream
from tests.chaos.proxy import Network
from tests.chaos.redis_server import MAX_MEMORY
from tests.chaos.stack import IDLE_SECONDS, RUN, Stack

_READS = {reader: stream for stream, reader in READERS.items()}
_CUT_SECONDS = 3.0
_HALF_OPEN_SECONDS = 6.0  # longer than redis.timeout_seconds: it is noticed by that alone
_DELAY_SECONDS = 8.0
_MUTE_SECONDS = 1.0
_FULL_SECONDS = 5.0
_CLOCK_SECONDS = 6.0


@dataclass(frozen=True, slots=True)
class Fault:
    """Args: ends: whether the process of the target ends by it."""

    name: str
    target: str
    act: Callable[[Stack, str], Awaitable[None]]
    ends: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.target}"

    async def happen(self, stack: Stack) -> None:
        await self.act(stack, self.target)


async def _kill(stack: Stack, service: str) -> None:
    (await stack.alive(service)).kill()


async def _terminate(stack: Stack, service: str) -> None:
    process = await stack.alive(service)
    process.terminate()
    await asyncio.to_thread(psutil.wait_procs, [process], timeout=60)


async def _stop(stack: Stack, service: str) -> None:
    """Longer than the idle time: others may take what it holds, and it comes back and believes to hold it still."""
    process = await stack.alive(service)
    process.suspend()
    await asyncio.sleep(IDLE_SECONDS + 1)
    process.resume()


async def _wedge(stack: Stack, service: str) -> None:
    """Stopped, and never continued by us."""
    (await stack.alive(service)).suspend()


async def _kill_workers(stack: Stack, service: str) -> None:
    for child in (await stack.alive(service)).children(recursive=True):
        child.kill()


def _network(fault: Network, seconds: float) -> Callable[[Stack, str], Awaitable[None]]:
    async def act(stack: Stack, target: str) -> None:
        owner = target if target in SERVICES else None
        stack.proxy.begin(fault, owner)
        await asyncio.sleep(seconds)
        stack.proxy.end(owner)

    return act


async def _kill_redis(stack: Stack, _: str) -> None:
    await _restart_redis(stack, lambda: None)


async def _lose_power(stack: Stack, _: str) -> None:
    """The machine of Redis: what was not synced is gone, which under `everysec` is about a second of writes."""
    file = stack.redis.append_only_file()
    synced = file.stat().st_size
    await asyncio.sleep(1)
    await _restart_redis(stack, lambda: os.truncate(file, min(synced, file.stat().st_size)))


async def _restart_redis(stack: Stack, meanwhile: Callable[[], None]) -> None:
    """What it had acknowledged is compared with what it has when it is back, before anybody else talks to it."""
    before = await stack.account()
    await stack.redis.kill()
    stack.proxy.begin(Network.CUT)
    meanwhile()
    await asyncio.sleep(1)
    await stack.redis.start()
    stack.lost += (await stack.account()).lost(before)
    stack.proxy.end()


async def _stop_redis(stack: Stack, _: str) -> None:
    stack.redis.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(IDLE_SECONDS + 1)
    stack.redis.process.send_signal(signal.SIGCONT)


async def _fill_redis(stack: Stack, _: str) -> None:
    await stack.redis.client.config_set("maxmemory", 1)
    await asyncio.sleep(_FULL_SECONDS)
    await stack.redis.client.config_set("maxmemory", MAX_MEMORY)


async def _fill_disk(stack: Stack, _: str) -> None:
    """Fills the run's file system. Without one of our own, no file of the learner may grow."""
    if not stack.disk:
        learner = await stack.alive("learner")
        learner.rlimit(psutil.RLIMIT_FSIZE, (1024, -1))
        await asyncio.sleep(_FULL_SECONDS)
        learner.rlimit(psutil.RLIMIT_FSIZE, (-1, -1))
        return
    ballast = stack.folder.parent / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for _second in range(int(_FULL_SECONDS)):  # again: old files may have been deleted
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            await asyncio.sleep(1)
    ballast.unlink()


def _jump(seconds: float) -> Callable[[Stack, str], Awaitable[None]]:
    """The time of day jumps, and back again."""

    async def act(stack: Stack, target: str) -> None:
        pid = stack.redis.process.pid if target == "redis" else (await stack.alive(target)).pid
        stack.clocks.set(pid, seconds)
        await asyncio.sleep(_CLOCK_SECONDS)
        stack.clocks.set(pid, 0)

    return act


async def _deliver_twice(stack: Stack, service: str) -> None:
    """What the service works on belongs to a consumer that is dead, so that it is delivered once more."""
    await _age(stack, service)
    await asyncio.sleep(IDLE_SECONDS)


async def _add_replica(stack: Stack, service: str) -> None:
    """A second process of the service takes over what the first one works on, and dies with it."""
    settings = [f"{service}.port=0", f"{service}.metrics_port=0", "streams.consumer=second"]
    settings.append(f"environments.generation_address={stack.services()['generation']['grpc']}")
    flags = [part for setting in settings for part in ("--set", setting)]
    replica = stack.routershift(
        "serve", service, "--recipe", str(stack.recipe), *stack.flags, *flags, log=f"{service}-2"
    )
    try:
        while not await _reads(stack, service, b"second"):
            assert replica.poll() is None, f"the second {service} ended with code {replica.returncode}"
            await asyncio.sleep(0.1)
        for _ in range(3):
            await _age(stack, service)
            await asyncio.sleep(IDLE_SECONDS / 2)
    finally:
        replica.kill()
        replica.wait()


async def _reads(stack: Stack, service: str, consumer: bytes) -> bool:
    found = await stack.redis.client.xinfo_consumers(Keys(RUN)(_READS[service]), service)
    return any(each["name"] == consumer for each in found)


async def _age(stack: Stack, service: str) -> None:
    """Everything pending seems to have been left by a dead consumer."""
    key = Keys(RUN)(_READS[service])
    pending: Any = await stack.redis.client.xpending_range(key, service, "-", "+", 1000)
    if ids := [entry["message_id"] for entry in pending]:
        idle = int(IDLE_SECONDS * 1000) + 1
        await stack.redis.client.xclaim(key, service, "dead", 0, ids, idle=idle, justid=True)


_CONSUMERS = tuple(READERS[stream] for stream in Stream)
_EVERYWHERE = (*SERVICES, "everybody")


def _table() -> dict[str, Fault]:
    """Every fault at every place where it makes sense, by both names."""
    rows: Mapping[str, tuple[tuple[str, ...], Callable[[Stack, str], Awaitable[None]], bool]] = {
        "kill": (SERVICES, _kill, True),
        "terminate": (SERVICES, _terminate, True),
        "stop": (SERVICES, _stop, False),
        "wedge": (SERVICES, _wedge, True),
        "kill_workers": (("reward",), _kill_workers, False),
        "kill_engine": (("generation",), _kill_workers, True),
        "cut": (_EVERYWHERE, _network(Network.CUT, _CUT_SECONDS), False),
        "half_open": (_EVERYWHERE, _network(Network.HALF_OPEN, _HALF_OPEN_SECONDS), False),
        "delay": (_EVERYWHERE, _network(Network.DELAY, _DELAY_SECONDS), False),
        "mute": (_EVERYWHERE, _network(Network.MUTE, _MUTE_SECONDS), False),
        "kill_redis": (("redis",), _kill_redis, False),
        "power_loss": (("redis",), _lose_power, False),
        "stop_redis": (("redis",), _stop_redis, False),
        "redis_full": (("redis",), _fill_redis, False),
        "disk_full": (("disk",), _fill_disk, False),
        "clock_ahead": ((*SERVICES, "redis"), _jump(3600), False),
        "clock_behind": ((*SERVICES, "redis"), _jump(-3600), False),
        "deliver_twice": (_CONSUMERS, _deliver_twice, False),
        "replica": (("generation", "environments", "reward"), _add_replica, False),
    }
    return {
        f"{name} {target}": Fault(name, target, act, ends)
        for name, (targets, act, ends) in rows.items()
        for target in targets
    }


TABLE = _table()
