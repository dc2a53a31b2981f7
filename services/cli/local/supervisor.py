"""Keeps processes alive: what dies or falls silent is started again, and given up where that does not help.

A process is silent when it does not answer a probe in time: a wedged or a stopped one is as useless as a dead one.
Silence is counted in probes, not read from the clock, so that a machine that slept, or a stopped supervisor, does not
have healthy processes killed.
"""

import asyncio
import contextlib
import logging
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from services.cli.errors import ServiceEndedError
from services.cli.local.processes import Child
from services.cli.settings import SupervisorSettings
from shared.errors import DeadlineError
from shared.process.exits import EXIT_BAD_INPUT, EXIT_PORT_TAKEN

log = logging.getLogger(__name__)

_HEALTHY_SECONDS = 60.0
_PROBES = 6  # in the time after which silence counts as death
_START_PACE = 0.2  # seconds between probes of a process that starts


class SupervisedProcess:
    """Keeps one process running, from `start` to `stop`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        probe: Callable[[float], Awaitable[bool | None]],
        last_log_line: Callable[[], str],
        settings: SupervisorSettings,
        start_seconds: float,
        start_setting: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            probe: asks the process, with a timeout in seconds. True: it serves; False: it answers, but does not serve
                yet; None: no answer.
            last_log_line: the last line of its log.
            start_seconds: how long after its start the first answer may come.
            start_setting: the setting that says so.
        """
        self.name = name
        self.serving = asyncio.Event()
        self.restarts = 0
        self._command = command
        self._environment = environment
        self._probe = probe
        self._last_log_line = last_log_line
        self._settings = settings
        self._start_seconds = start_seconds
        self.start_setting = start_setting
        self._child: Child | None = None
        self._served_since: float | None = None
        self._has_served = False  # in this process or one before
        self._remedy = ""
        self._silence = 0.0  # seconds of it for which the process was killed

    def start(self) -> None:
        self._supervision = asyncio.create_task(self._supervise())

    async def ended(self) -> ServiceEndedError:
        """Waits until the process is given up, and gives the reason."""
        return await asyncio.shield(self._supervision)

    async def stop(self, grace: float) -> None:
        """SIGTERM, and after `grace` seconds SIGKILL. Nothing is started from here on; returns when it is gone."""
        self._supervision.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._supervision
        if self._child is not None:
            await self._child.stop(grace)

    async def _supervise(self) -> ServiceEndedError:
        settings = self._settings
        deaths: list[float] = []
        backoff = settings.backoff_seconds
        while True:
            code, end = await self._run_once()
            # Whoever starts it may choose another port until it has served once. Later others know the port, and what
            # holds it now may go.
            if code == EXIT_BAD_INPUT or (code == EXIT_PORT_TAKEN and not self._has_served):
                return ServiceEndedError(self.name, code, f"{self.name} {end}")
            now = time.monotonic()
            if self._served_since is not None and now - self._served_since >= _HEALTHY_SECONDS:
                backoff = settings.backoff_seconds
                deaths = [death for death in deaths if now - death < settings.deaths_seconds]
            deaths.append(now)
            if len(deaths) >= settings.max_deaths:
                times = "once" if len(deaths) == 1 else f"{len(deaths)} times in {now - deaths[0]:.0f} s"
                return ServiceEndedError(
                    self.name, code, f"{self.name} died {times} and is given up: it {end}{self._remedy}"
                )
            delay = min(backoff, settings.max_backoff_seconds) * random.uniform(0.5, 1.0)  # noqa: S311  # jitter
            backoff = min(2 * backoff, settings.max_backoff_seconds)
            log.warning("%s %s; it is started again in %.1f s", self.name, end, delay)
            await asyncio.sleep(delay)
            self.restarts += 1

    async def _run_once(self) -> tuple[int, str]:
        """Starts the process once and waits for its end: the exit code, and how it ended in words."""
        self._served_since, self._silence, self._remedy = None, 0.0, ""
        try:
            self._child = child = await Child.start(self.name, self._command, self._environment)
        except OSError as error:  # too many processes, no memory: it may pass
            return 1, f"could not be started ({error})"
        ending, watching = asyncio.create_task(child.wait()), asyncio.create_task(self._watch(child))
        try:
            either: set[asyncio.Future[Any]] = {ending, watching}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if watching.done():
                watching.result()
            code = await ending
        finally:
            ending.cancel()
            watching.cancel()
            await asyncio.gather(ending, watching, return_exceptions=True)
            self.serving.clear()
        child.kill()  # what it left behind would be in the way of the next
        if self._silence:
            return code, f"did not answer for {self._silence:g} s and was killed"
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return code, f"{how}; the last line of its log: {self._last_log_line()}"

    async def _watch(self, child: Child) -> None:
        """Kills it when it has been silent for too long."""
        pace = self._settings.liveness_seconds / _PROBES
        patience, silent = self._start_seconds, 0.0
        setting = self.start_setting
        while silent < patience:
            began = time.monotonic()
            answer = await self._probe(pace)
            if answer is not None:
                patience, silent = self._settings.liveness_seconds, 0.0
                setting = "supervisor.liveness_seconds"
            if answer and not self.serving.is_set():
                self._served_since, self._has_served = time.monotonic(), True
                self.serving.set()
            wait = pace if self.serving.is_set() else min(pace, _START_PACE)
            await asyncio.sleep(began + wait - time.monotonic())
            silent += min(time.monotonic() - began, 2 * pace)
        self._silence = patience
        self._remedy = f"; if it is only slow, raise {setting}"
        child.kill()


async def first_ended(processes: Iterable[SupervisedProcess]) -> ServiceEndedError:
    """Waits until one of them is given up, and gives its reason."""
    waits = [asyncio.create_task(process.ended()) for process in processes]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waits:
            task.cancel()
    return done.pop().result()


async def until_serving(processes: Sequence[SupervisedProcess], timeout: float) -> None:
    """Waits until all serve.

    Raises:
        ServiceEndedError: one of them is given up.
        DeadlineError: `timeout` seconds have passed; names those that do not serve.
    """
    ended = asyncio.create_task(first_ended(processes))
    everything = asyncio.gather(*(process.serving.wait() for process in processes))
    try:
        either: set[asyncio.Future[Any]] = {ended, everything}
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise ended.result()
        if not everything.done():
            late = [process for process in processes if not process.serving.is_set()]
            raise DeadlineError(
                f"{', '.join(process.name for process in late)} did not serve within {timeout:g} s; see the logs in "
                f"the run's folder, or raise {', '.join(process.start_setting for process in late)} if only slow"
            )
    finally:
        everything.cancel()
        ended.cancel()
        await asyncio.gather(everything, ended, return_exceptions=True)
