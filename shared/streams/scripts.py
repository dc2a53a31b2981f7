"""Calls of the Lua scripts beside this module: every state change of the data path is one of them.

They are Redis Functions. Redis 6.2 has none: there each process loads the scripts themselves.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError, ResponseError

from shared.errors import PreconditionError
from shared.streams.connection import Client, server_release
from shared.streams.functions import ACKNOWLEDGED, digest, library, load, source

log = logging.getLogger(__name__)

_LOADS = 20  # of a script, in one call: a server that dies between load and call has forgotten it again
_NO_FUNCTIONS = re.compile("unknown command .FCALL")
_LOOK_SECONDS = 0.5  # between looks for functions that somebody else has to load


@dataclass(frozen=True, slots=True)
class Fence:
    """What a script that writes for a role of the run is shown: a number that grows with every holder of the role."""

    key: str  # hash of role to the number of its newest holder
    role: str  # '' for a process that holds none
    number: int


class Script:
    """A script of a Redis server, given to the server when it is first missed there."""

    def __init__(self, redis: Redis, name: str, fence: Callable[[], Fence] | None = None) -> None:
        """
        Args:
            redis: a client of `connect`.
            name: of the function, as in `settle`.
            fence: what this process holds, of a script that writes for a role: see fence.lua.
        """
        if not isinstance(redis, Client):
            raise TypeError(f"{type(redis).__name__} is no client of `connect`")
        self._redis = redis
        self._name = name
        self._fence = fence
        self._calls = [library().call(name, fenced) for fenced in ((False, True) if fence else (False,))]

    async def __call__(self, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The answer of the script.

        Raises:
            PreconditionError: another process holds the role for which this one writes, so that nothing was done; or
                the server does not have the functions, and this user may not load them.
        """

        async def call() -> Any:
            command = self._command(keys, args)
            if not self._is_durable:
                return await self._redis.execute_command(*command)
            return (await self._redis.execute_durably([command], self._mark(keys)))[-1]

        return await self._found(call)

    async def after(
        self, command: Sequence[Any], keys: Sequence[str], args: Sequence[Any], wait_for_memory: bool = True
    ) -> Any:
        """The answer of the script, sent together with a command that goes before it.

        Both are repeated where the script was not loaded or the answer was lost. They are no MULTI, which would cost
        more: the script has to find out what the command has done. Where the command fails its error is raised, even
        though the script was run.

        Raises:
            PreconditionError: as a plain call.
            OutOfMemoryError: Redis has no memory, and `wait_for_memory` is False.
        """

        async def both() -> Any:
            commands = (command, self._command(keys, args))
            return await self._redis.execute_durably(commands, self._mark(keys), wait_for_memory)

        return (await self._found(both))[-1]

    @property
    def _is_durable(self) -> bool:
        return self._redis.durable is not None and self._name in ACKNOWLEDGED

    def _command(self, keys: Sequence[str], args: Sequence[Any]) -> tuple[Any, ...]:
        fence = self._fence() if self._fence else None
        fenced = fence is not None and fence.role != ""
        call = self._calls[fenced] if self._redis.has_functions else ("EVALSHA", digest(self._name, fenced))
        if fence is None or not fenced:
            return (*call, len(keys), *keys, *args)
        return (*call, len(keys) + 1, *keys, fence.key, *args, fence.role, fence.number)

    @staticmethod
    def _mark(keys: Sequence[str]) -> tuple[Any, ...]:
        return (*library().call("mark", fenced=False), 1, f"{keys[0].partition('}')[0]}}}:bytes")

    async def _found(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """The answer, as soon as the server has the script."""
        waiting_since: float | None = None
        loads = 0
        while True:
            try:
                return await call()
            except ResponseError as error:
                if loads == _LOADS:
                    raise
                if isinstance(error, NoScriptError):
                    for fenced in (False, True):
                        await self._redis.script_load(source(self._name, fenced))
                    loads += 1
                elif _NO_FUNCTIONS.search(str(error)):
                    await self._do_without()
                elif "Function not found" not in str(error):
                    raise
                elif waiting_since is not None:
                    await self._wait(waiting_since)
                else:
                    try:
                        await load(self._redis)
                        loads += 1
                    except PreconditionError:
                        log.warning("waiting for the functions %s, which this user may not load", library().name)
                        waiting_since = time.monotonic()

    async def _do_without(self) -> None:
        if self._redis.has_functions:
            self._redis.has_functions = False
            log.warning(
                "%s has no functions, and no selectors for its users, as Redis 7 and Valkey have: a user of a service "
                "may load and run any script, also one that never ends, and write its keys by any command",
                await server_release(self._redis),
            )

    async def _wait(self, since: float) -> None:
        """Waits for somebody who may load the functions, as for a server that is away."""
        if time.monotonic() > since + self._redis.outage_seconds:
            raise PreconditionError(
                f"this Redis does not have the functions {library().name} of this RouterShift, and its user may not "
                "load them: run `routershift functions` as its user functions"
            )
        await asyncio.sleep(_LOOK_SECONDS)
