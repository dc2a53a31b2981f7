"""Agents that are started here: children of the service, which end with it."""

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from services.environments.gateway.agent import AgentEnvironment, AgentSettings
from services.environments.registry import Configured
from shared.process.orphans import die_with_parent
from shared.process.service import background
from shared.process.variables import of_programs

log = logging.getLogger(__name__)

_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds before one that ended is started again
_TERM_SECONDS = 5.0


@asynccontextmanager
async def agents(environments: Mapping[str, Configured], url: str) -> AsyncIterator[None]:
    """Runs the command of each environment that agents play, for as long as the block lasts.

    Args:
        url: of the gateway, which a command has as ROUTERSHIFT_GATEWAY; its environment as ROUTERSHIFT_ENVIRONMENT.
    """
    commands = [
        (name, configured.settings)
        for name, configured in environments.items()
        if issubclass(configured.kind, AgentEnvironment) and isinstance(configured.settings, AgentSettings)
    ]
    kept = [
        _keep(name, settings, url) for name, settings in commands if settings.command for _ in range(settings.processes)
    ]
    async with background(*kept):
        yield


async def _keep(name: str, settings: AgentSettings, url: str) -> None:
    """One agent; started again when it ends, after a pause that doubles."""
    pause = _FIRST_PAUSE
    parent = os.getpid()
    command = settings.command
    environment = of_programs(settings.variables) | {"ROUTERSHIFT_GATEWAY": url, "ROUTERSHIFT_ENVIRONMENT": name}
    while True:
        began = asyncio.get_running_loop().time()
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                preexec_fn=lambda: die_with_parent(parent),
                start_new_session=True,
            )
        except OSError as error:
            log.error("environment %s: its agent %s cannot be started: %s", name, command[0], error)
        else:
            try:
                code = await process.wait()
            finally:
                await _end(process)
            log.warning("environment %s: its agent %s ended with code %d", name, command[0], code)
        if asyncio.get_running_loop().time() - began > _LONGEST_PAUSE:
            pause = _FIRST_PAUSE
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)


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
