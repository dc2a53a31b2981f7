"""Agents that are started here: children of the service, which end with it."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Protocol

from services.environments.gateway.agent import AgentEnvironment, AgentSettings
from services.environments.registry import Configured
from shared.process.orphans import die_with_parent
from shared.process.service import background
from shared.process.variables import of_programs

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds before one that ended is started again
_TERM_SECONDS = 5.0


class Claims(Protocol):
    """Whose episodes are whose; see `Episodes`."""

    def agent_started(self) -> str: ...

    def agent_ended(self, agent: str, how: str) -> bool: ...


@asynccontextmanager
async def agents(environments: Mapping[str, Configured], episodes: Claims, url: str) -> AsyncIterator[None]:
    """Runs the command of each environment that agents play, for as long as the block lasts.

    Args:
        episodes: that they claim. Those of a process that has ended are ended too.
        url: of the gateway. A command has as ROUTERSHIFT_GATEWAY its own path of it, so that its claims are known, and
            its environment as ROUTERSHIFT_ENVIRONMENT.
    """
    commands = [
        (name, configured.settings)
        for name, configured in environments.items()
        if issubclass(configured.kind, AgentEnvironment) and isinstance(configured.settings, AgentSettings)
    ]
    kept = [
        _keep(name, settings, episodes, url)
        for name, settings in commands
        if settings.command
        for _ in range(settings.processes)
    ]
    async with background(*kept):
        yield


async def _keep(name: str, settings: AgentSettings, episodes: Claims, url: str) -> None:
    """One agent; started again when it ends, after a pause that doubles until one has rewarded an episode."""
    pause = _FIRST_PAUSE
    parent = os.getpid()
    command = settings.command
    seen = of_programs(settings.variables) | {"ROUTERSHIFT_ENVIRONMENT": name}
    while True:
        began = asyncio.get_running_loop().time()
        agent = episodes.agent_started()
        how, has_rewarded = "the service", False
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=seen | {"ROUTERSHIFT_GATEWAY": f"{url}/agents/{agent}"},
                stdin=asyncio.subprocess.DEVNULL,
                preexec_fn=lambda: die_with_parent(parent),
                start_new_session=True,
            )
        except OSError as error:
            log.error("environment %s: its agent %s cannot be started: %s", name, command[0], error)
        else:
            try:
                how = _how(await process.wait())
                log.warning("environment %s: its agent %s ended with %s", name, command[0], how)
            finally:
                await _end(process)
        finally:
            has_rewarded = episodes.agent_ended(agent, how)
        if has_rewarded or asyncio.get_running_loop().time() - began > _LONGEST_PAUSE:
            pause = _FIRST_PAUSE
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


def _how(code: int) -> str:
    """In words: a negative code is the signal that ended it."""
    return f"code {code}" if code >= 0 else f"signal {-code} ({signal.strsignal(-code)})"


async def _end(process: asyncio.subprocess.Process) -> None:
    """It and what it started: told to end, then killed."""
    for number, seconds in ((signal.SIGTERM, _TERM_SECONDS), (signal.SIGKILL, _TERM_SECONDS)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        if process.returncode is None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), seconds)
