"""The Lua scripts beside this module: every state change of the data path is one of them."""

import hashlib
from collections.abc import Sequence
from importlib import resources
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from shared.streams.connection import transaction

_LOADS = 20  # of a script, in one call: a server that dies between load and call has forgotten it again


class Script:
    """A script of a Redis server, loaded when it is first missed there."""

    def __init__(self, redis: Redis, name: str) -> None:
        """Args: name: of its file, as in `settle`."""
        self._redis = redis
        self._source = source(name)
        self._sha = hashlib.sha1(self._source.encode()).hexdigest()  # noqa: S324  # as Redis names it

    async def __call__(self, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """The answer of the script."""
        return await self._loaded(lambda: self._redis.execute_command(*self._command(keys, args)))  # type: ignore[no-untyped-call]  # it has no types

    async def after(
        self, command: Sequence[Any], keys: Sequence[str], args: Sequence[Any], wait_for_memory: bool = True
    ) -> Any:
        """The answer of the script, carried out after another command in one transaction.

        The command is repeated where the script was not loaded, or the answer was lost; see `transaction`.
        """
        commands = (command, self._command(keys, args))
        return (await self._loaded(lambda: transaction(self._redis, *commands, wait_for_memory=wait_for_memory)))[-1]

    def _command(self, keys: Sequence[str], args: Sequence[Any]) -> tuple[Any, ...]:
        return ("EVALSHA", self._sha, len(keys), *keys, *args)

    async def _loaded(self, call: Any) -> Any:
        for _ in range(_LOADS):
            try:
                return await call()
            except NoScriptError:
                await self._redis.script_load(self._source)
        return await call()


def source(name: str) -> str:
    """The text of a script. Args: name: of its file, as in `settle`."""
    return resources.files("shared.streams").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
