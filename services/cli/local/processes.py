"""Child processes that cannot outlive us: each in its own session, killed by the kernel if we die."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Mapping, Sequence
from typing import Self

from shared.process.orphans import die_with_parent


class Child:
    """A started process. Its session keeps a terminal's Ctrl-C away from it, so that we decide the order of the end."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self._process = process

    @classmethod
    async def start(cls, name: str, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Self:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            env=dict(environment) if environment is not None else None,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )
        return cls(name, process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        return await self._process.wait()

    async def stop(self, grace: float) -> None:
        """SIGTERM, and after `grace` seconds SIGKILL to its whole session. Returns when it is gone."""
        if self.code is None:
            self._process.terminate()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._process.wait(), grace)
        self.kill()
        await self._process.wait()

    def kill(self) -> None:
        """SIGKILL to its session: also to grandchildren that a dead child left behind."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
