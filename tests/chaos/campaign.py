"""Faults into a run that must go on: how long it took to recover from each, and what they have cost in the end."""

import asyncio
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.learner.checkpointing.checkpoint import trained_groups
from shared.errors import CorruptDataError
from shared.settings import SERVICES
from tests.chaos import account
from tests.chaos.faults import TABLE, Fault
from tests.chaos.stack import RUN, Stack

WEDGE_SECONDS = 120.0
_LOOK_SECONDS = 0.25
_LONG_SECONDS = 30.0  # what was said during a recovery that took longer is shown
_PAIRS = 0.2  # share of faults that come two at a time
_PROCESS_FAULTS = ("kill", "terminate", "stop", "wedge")
_OTHER_FAULTS = ("cut", "half_open", "delay", "mute", "kill_redis", "stop_redis", "disk_full")
_ENDS_SHOWN = 10


@dataclass(slots=True)
class Campaign:
    """One run under fire: its faults, in turn, and what they cost."""

    stack: Stack
    faults: int = 0
    wedges: int = 0
    recovery_seconds: dict[str, list[float]] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    _incarnations: dict[str, int] = field(default_factory=dict)

    async def strike(self, *faults: Fault) -> list[str]:
        """All of them at once; returns when the run goes on, which is when every service serves and all marks have
        passed what they were when the last fault ended. Gives what was unexpected.

        Raises:
            AssertionError: it does not go on.
        """
        names, stack = " + ".join(map(str, faults)), self.stack
        known = len(self.unexpected)
        await self._look_for_deaths("before", ())
        said = len(stack.said())
        self.faults += len(faults)
        await asyncio.gather(*(fault.happen(stack) for fault in faults))
        before, began = await stack.marks(), time.monotonic()
        while not (await stack.serving() and (await stack.marks()).passed(before)):
            assert stack.up.poll() is None, (
                f"{names}: `up` ended with code {stack.up.returncode}: {stack.said()[said:]}"
            )
            if time.monotonic() - began > WEDGE_SECONDS:
                self.wedges += 1
                raise AssertionError(f"{names}: not recovered after {WEDGE_SECONDS} s: {stack.said()[said:]}")
            await asyncio.sleep(_LOOK_SECONDS)
        seconds = time.monotonic() - began
        self.recovery_seconds.setdefault(names, []).append(seconds)
        sys.stderr.write(f"{names}: {seconds:.1f} s\n")
        if seconds > _LONG_SECONDS:
            sys.stderr.write(f"{stack.said()[said:]}stalls of Redis: {await stack.redis.stalls() or 'none'}\n")
        await self._look_for_deaths(names, {fault.target for fault in faults if fault.ends}, stack.said()[said:])
        self.unexpected += [f"{names}: {line}" for line in (await stack.account()).findings()]
        return self.unexpected[known:]

    async def finish(self) -> dict[str, Any]:
        """Stops the run in order, and gives the account of all of it."""
        stack = self.stack
        if code := await stack.stop():
            self.unexpected.append(f"`up` ended with code {code} when it was told to stop: {stack.said()[-1000:]}")
        self.unexpected += [f"left behind: {' '.join(process.cmdline())}" for process in stack.left()]
        found = await stack.account()
        self.unexpected += found.findings()
        self.unexpected += [f"group {group} ended as {how}" for group, how in found.ended if how.startswith("dead")]
        steps = account.last_step(stack.folder / "checkpoints")
        trained = found.trained
        twice = account.twice(trained)
        try:
            listed = trained_groups(stack.folder / "checkpoints")
        except CorruptDataError as error:
            self.unexpected.append(str(error))
        else:
            # Every step takes new groups: fewer of them than that means that some were taken twice.
            if len(listed) != steps * stack.groups_per_step:
                self.unexpected.append(f"the learner's lists have {len(listed)} groups after {steps} steps")
            if odd := sorted(listed.keys() ^ set(trained)):
                self.unexpected.append(f"trained by the account of only one of Redis and learner: {odd[:_ENDS_SHOWN]}")
        audit = stack.routershift("audit", RUN, log="audit", direct=True)
        if await asyncio.to_thread(audit.wait, 60):
            self.unexpected.append(f"`routershift audit` says: {stack.said('audit')[-1000:]}")
        seconds = [each for taken in self.recovery_seconds.values() for each in taken]
        rewards = account.rewards(stack.folder)
        tenth = max(1, len(rewards) // 10)
        return {
            "faults": self.faults,
            "acknowledged": found.acknowledged,
            "lost": stack.lost + len(found.missing()),
            "trained_twice": len(twice),
            "unexpected": len(self.unexpected),
            "recovery_seconds": {"p50": statistics.median(seconds), "max": max(seconds)} if seconds else {},
            "wedges": self.wedges,
            "steps": steps,
            "reward": {"start": statistics.mean(rewards[:tenth]), "end": statistics.mean(rewards[-tenth:])},
            "groups": dict(Counter(how for _, how in found.ended)),
            "slowest": {name: max(taken) for name, taken in self._slowest()},
            "found": self.unexpected,
        }

    def _slowest(self) -> list[tuple[str, list[float]]]:
        return sorted(self.recovery_seconds.items(), key=lambda item: -max(item[1]))[:_ENDS_SHOWN]

    async def _look_for_deaths(self, names: str, expected: Collection[str], said: str = "") -> None:
        """Notices services that have ended though no fault ends them."""
        for service in self.stack.services():
            pid = (await self.stack.alive(service)).pid
            if self._incarnations.get(service, pid) != pid and service not in expected:
                why = [
                    line for line in said.splitlines() if line.startswith(("routershift", service)) and service in line
                ]
                self.unexpected.append(f"{names}: {service} ended: {' | '.join(why)[-1000:]}")
            self._incarnations[service] = pid


def schedule(seed: int, engine: str, appendfsync: str, services: Collection[str]) -> Iterator[Sequence[Fault]]:
    """Faults for ever: every kind as often as any other, at any place where it can be; some two at a time.

    Args:
        engine: of generation. Only that of vLLM is a process of its own.
        appendfsync: of Redis. Under `always` everything is synced before it is acknowledged, so that a loss of power is
            no more than the end of the process.
        services: that run.
    """
    draw = random.Random(seed)
    without = {"kill_engine"} if engine == "torch" else set()
    without |= {"power_loss"} if appendfsync == "always" else set()
    table = [fault for fault in TABLE.values() if fault.target not in SERVICES or fault.target in services]
    names = sorted({fault.name for fault in table} - without)

    def one(among: Sequence[str], but: str = "") -> Fault:
        name = draw.choice(among)
        return draw.choice([f for f in table if f.name == name and f.target != but])

    while True:
        if draw.random() < _PAIRS:
            first = one(_PROCESS_FAULTS)
            yield first, one(_OTHER_FAULTS, but=first.target)
        else:
            yield (one(names),)
