"""The Lua scripts beside this module: every state change of the data path is one of them."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from shared.streams.connection import together

_LOADS = 20  # of a script, in one call: a server that dies between load and call has forgotten it again


@dataclass(frozen=True, slots=True)
class Fence:
    """What a script that writes for a role of the run is shown: a number that grows with every holder of the role."""

    key: str  # hash of role to the number of its newest holder
    role: str  # '' for a process that holds none
    number: int


class Script:
    """A script of a Redis server, loaded when it is first missed there."""

    def __init__(self, redis: Redis, name: str, fence: Callable[[], Fence] | None = None) -> None:
        """
        Args:
            name: of its file, as in `settle`.
            fence: what this process holds, of a script that writes for a role: see fence.lua.
        """
        self._redis = redis
        self._fence = fence
        plain = source(name)
        self._texts = {_sha(text): text for text in (plain, source("fence") + plain)}
        self._plain, self._fenced = self._texts

    async def __call__(self, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The answer of the script.

        Raises:
            PreconditionError: another process holds the role for which this one writes; nothing was done.
        """
        return await self._loaded(lambda: self._redis.execute_command(*self._command(keys, args)))  # type: ignore[no-untyped-call]  # it has no types

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
        commands = (command, self._command(keys, args))
        answers = await self._loaded(
            lambda: together(self._redis, *commands, transaction=False, wait_for_memory=wait_for_memory)
        )
        return answers[-1]

    def _command(self, keys: Sequence[str], args: Sequence[Any]) -> tuple[Any, ...]:
        fence = self._fence() if self._fence else None
        if fence is None or not fence.role:
            return ("EVALSHA", self._plain, len(keys), *keys, *args)
        return ("EVALSHA", self._fenced, len(keys) + 1, *keys, fence.key, *args, fence.role, fence.number)

    async def _loaded(self, call: Any) -> Any:
        for _ in range(_LOADS):
            try:
                return await call()
            except NoScriptError:
                for text in self._texts.values():
                    await self._redis.script_load(text)
        return await call()


def _sha(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()  # noqa: S324  # as Redis names it


def source(name: str) -> str:
    """The text of a script. Args: name: of its file, as in `settle`."""
    return resources.files("shared.streams").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
