"""Keeps processes alive: what dies or falls silent is started again, and given up where that does not help.

A process is silent when it does not answer a question in time: a wedged or a stopped one is as useless as a dead one.
Silence is counted in questions asked, not read from the clock, so that a machine that slept, or a stopped supervisor,
does not cost healthy processes their lives.
"""

import asyncio
import contextlib
import logging
import random
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from pydantic import Field

from services.cli.local.processes import Child
from shared.errors import DeadlineError, RouterShiftError
from shared.process.service import EXIT_BAD_INPUT
from shared.settings import Table

log = logging.getLogger(__name__)

_HEALTHY_SECONDS = 60.0
_QUESTIONS = 6  # in the time after which silence counts as death
_START_PACE = 0.2  # seconds between questions to a process that starts


class SupervisorSettings(Table):
    """The table [supervisor]: when `routershift up` and `run` start a process again, and when they give up."""

    liveness_seconds: float = Field(30.0, gt=0, description="silence after which a process is killed and replaced")
    backoff_seconds: float = Field(0.5, gt=0, description="wait before the first restart; doubles with every death")
    max_backoff_seconds: float = Field(10.0, gt=0, description="longest wait before a restart")
    max_deaths: int = Field(8, ge=1, description="deaths of one process at which the run is given up; 1: no restarts")
    deaths_seconds: float = Field(300.0, gt=0, description="age at which the deaths of a healthy process are forgotten")


class ServiceEndedError(RouterShiftError):
    """A process ended and is not started again; `code` is its exit code, negative where a signal ended it."""

    def __init__(self, service: str, code: int, message: str) -> None:
        super().__init__(service, code, message)
        self.service = service
        self.code = code
        self._message = message

    def __str__(self) -> str:
        return self._message


class Keeper:
    """Keeps one process running, from `start` to `stop`."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        ask: Callable[[float], Awaitable[bool | None]],
        last_words: Callable[[], str],
        settings: SupervisorSettings,
        start_seconds: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            ask: puts a question to the process, with a timeout in seconds. True: it serves; False: it lives, but does
                not serve yet; None: no answer.
            last_words: the last line of its log.
            start_seconds: how long after its start the first answer may come.
        """
        self.name = name
        self.serving = asyncio.Event()
        self.restarts = 0
        self._command = command
        self._environment = environment
        self._ask = ask
        self._last_words = last_words
        self._settings = settings
        self._start_seconds = start_seconds
        self._child: Child | None = None
        self._served_since: float | None = None
        self._silence = 0.0  # seconds of it that ended the present life

    def start(self) -> None:
        self._keeping = asyncio.create_task(self._keep())

    async def ended(self) -> ServiceEndedError:
        """Waits until the process is given up, and gives the reason."""
        return await asyncio.shield(self._keeping)

    async def stop(self, grace: float) -> None:
        """SIGTERM, and after `grace` seconds SIGKILL. Nothing is started from here on; returns when it is gone."""
        self._keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._keeping
        if self._child is not None:
            await self._child.stop(grace)

    async def _keep(self) -> ServiceEndedError:
        settings = self._settings
        deaths: list[float] = []
        backoff = settings.backoff_seconds
        while True:
            code, end = await self._live()
            if code == EXIT_BAD_INPUT:
                return ServiceEndedError(self.name, code, f"{self.name} {end}")
            now = time.monotonic()
            if self._served_since is not None and now - self._served_since >= _HEALTHY_SECONDS:
                backoff = settings.backoff_seconds
                deaths = [death for death in deaths if now - death < settings.deaths_seconds]
            deaths.append(now)
            if len(deaths) >= settings.max_deaths:
                times = "once" if len(deaths) == 1 else f"{len(deaths)} times in {now - deaths[0]:.0f} s"
                return ServiceEndedError(self.name, code, f"{self.name} died {times} and is given up: it {end}")
            delay = min(backoff, settings.max_backoff_seconds) * random.uniform(0.5, 1.0)  # noqa: S311  # jitter
            backoff = min(2 * backoff, settings.max_backoff_seconds)
            log.warning("%s %s; it is started again in %.1f s", self.name, end, delay)
            await asyncio.sleep(delay)
            self.restarts += 1

    async def _live(self) -> tuple[int, str]:
        """One life: the exit code, and how it ended in words."""
        self._served_since, self._silence = None, 0.0
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
        return code, f"{how}; the last line of its log: {self._last_words()}"

    async def _watch(self, child: Child) -> None:
        """Kills it when it has been silent for too long."""
        pace = self._settings.liveness_seconds / _QUESTIONS
        patience, silent = self._start_seconds, 0.0
        while silent < patience:
            began = time.monotonic()
            answer = await self._ask(pace)
            if answer is not None:
                patience, silent = self._settings.liveness_seconds, 0.0
            if answer and not self.serving.is_set():
                self._served_since = time.monotonic()
                self.serving.set()
            wait = pace if self.serving.is_set() else min(pace, _START_PACE)
            await asyncio.sleep(began + wait - time.monotonic())
            silent += min(time.monotonic() - began, 2 * pace)
        self._silence = patience
        child.kill()


async def first_ended(keepers: Iterable[Keeper]) -> ServiceEndedError:
    """Waits until one of them is given up, and gives its reason."""
    waits = [asyncio.create_task(keeper.ended()) for keeper in keepers]
    try:
        done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waits:
            task.cancel()
    return done.pop().result()


async def until_serving(keepers: Sequence[Keeper], timeout: float) -> None:
    """Waits until all serve.

    Raises:
        ServiceEndedError: one of them is given up.
        DeadlineError: `timeout` seconds have passed; names those that do not serve.
    """
    ended = asyncio.create_task(first_ended(keepers))
    everything = asyncio.gather(*(keeper.serving.wait() for keeper in keepers))
    try:
        either: set[asyncio.Future[Any]] = {ended, everything}
        await asyncio.wait(either, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise ended.result()
        if not everything.done():
            late = ", ".join(keeper.name for keeper in keepers if not keeper.serving.is_set())
            raise DeadlineError(f"{late} did not serve within {timeout:g} s; see the logs in the run's folder")
    finally:
        everything.cancel()
        ended.cancel()
        await asyncio.gather(everything, ended, return_exceptions=True)
