"""Servers of Redis that know each other, as those of Sentinel and of Cluster do: processes of a test's own."""

import asyncio
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

from redis.exceptions import RedisError

_SECONDS = 30.0


def start(
    stack: ExitStack, folder: Path, binary: str, *options: str, sentinel: bool = False
) -> "subprocess.Popen[bytes]":
    """A server with these lines of redis.conf, which is killed as the stack is left.

    Args:
        folder: of its own, which is made.
    """
    folder.mkdir()
    (folder / "redis.conf").write_text("\n".join(("bind 127.0.0.1", f"dir {folder}", *options)))
    command = [binary, str(folder / "redis.conf"), *(["--sentinel"] if sentinel else [])]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    stack.callback(process.wait, 10)
    stack.callback(process.kill)
    return process


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Returns when it holds; a server that does not answer yet does not. Raises TimeoutError."""
    async with asyncio.timeout(_SECONDS):
        while True:
            try:
                if await holds():
                    return
            except RedisError:
                pass
            await asyncio.sleep(0.05)
