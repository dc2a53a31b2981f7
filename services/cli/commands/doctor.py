"""What this machine has and lacks for a run: software, Redis, memory, disk, ports, model and settings."""

import argparse
import asyncio
import contextlib
import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import psutil

from services.cli.arguments import add_recipe, add_settings
from services.cli.local.redis import find_server, release_of
from services.cli.machine import MACHINE_CHECKS, existing_folder
from services.cli.preflight import CHECKS
from services.cli.recipe import Recipe
from shared import sizes
from shared.errors import MissingDependencyError, NotFoundError, PreconditionError, RouterShiftError
from shared.models import hub
from shared.process.exits import EXIT_BAD_INPUT, EXIT_OK
from shared.recipes import load
from shared.streams.connection import connect, server_release
from shared.streams.releases import Release

_FREE_DISK = 1 << 30
_FREE_MEMORY = 3 << 30
_MODEL = "run.model="  # what a flag that names a model begins with

Row = tuple[bool, str, str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser)
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    """EXIT_BAD_INPUT where a check fails."""
    with hub.only_looking():
        rows = asyncio.run(doctor(arguments.recipe, arguments.flags))
    for well, name, text in rows:
        print(f"{'ok  ' if well else 'FAIL'} {name:<9} {text}")
    return EXIT_OK if all(well for well, _, _ in rows) else EXIT_BAD_INPUT


async def doctor(recipe_file: Path | None, flags: Sequence[str]) -> list[Row]:
    """One row a check: whether it is well, its name, and what was found or how to fix it. Nothing is downloaded.

    Settings count as they would in a run: recipe, environment, flags. Where none of them names a model, or
    where prompts come from, it is not looked at.
    """
    rows = [
        _check("python", lambda: f"{platform.python_version()} at {sys.executable}"),
        _check("torch", lambda: _package("torch", "make install")),
        _check("memory", lambda: _enough(psutil.virtual_memory().available, _FREE_MEMORY, "available")),
    ]
    try:
        recipe, names_model = _load(recipe_file, flags)
    except RouterShiftError as error:
        return [*rows, (False, "settings", str(error))]
    rows.append(_check("disk", lambda: _disk(recipe)))
    rows.append(await _redis(recipe))
    if names_model and (row := _download(recipe)) is not None:
        rows.append(row)
        names_model = False  # there is nothing to look at yet
    unnamed = {"model", "limits", "kernels", "learner", "optimizer", "data", "streams"} if not names_model else set()
    if recipe_file is None and recipe.run.task is None and not recipe.data.train:
        unnamed.add("task")
    checks = {name: check for name, check in {**CHECKS, **MACHINE_CHECKS}.items() if name not in unnamed}
    return [*rows, *(_check(name, partial(check, recipe)) for name, check in checks.items())]


def _load(recipe_file: Path | None, flags: Sequence[str]) -> tuple[Recipe, bool]:
    """The settings, and whether they name a model."""
    names_model = (
        recipe_file is not None
        or "ROUTERSHIFT_RUN__MODEL" in os.environ
        or any(flag.startswith(_MODEL) for flag in flags)
    )
    placeholder = [] if names_model else [f"{_MODEL}none"]
    return load(Recipe, recipe_file, os.environ, [*placeholder, *flags]), names_model


def _download(recipe: Recipe) -> Row | None:
    """What a start would fetch of a model that the cache of the Hub lacks; None for a folder, or where it is there."""
    run = recipe.run
    if isinstance(run.model, Path):
        return None
    try:
        run.model_folder()
    except NotFoundError:
        try:
            found = hub.would_download(run.model, run.model_revision)
        except RouterShiftError as error:
            return False, "model", str(error)
        size = sizes.in_words(found.bytes)
        return True, "model", f"{run.model} is not in the cache: a start downloads {size} in {found.files} files"
    except RouterShiftError:  # its own check says it
        pass
    return None


def _check(name: str, check: Callable[[], str]) -> Row:
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
    text = f"{sizes.in_words(found)} {what}"
    if found < wanted:
        raise PreconditionError(f"{text}; a run wants {sizes.in_words(wanted)}")
    return text


def _disk(recipe: Recipe) -> str:
    """Room for the versions and the checkpoints that are kept, by the size of the model's files."""
    folder = existing_folder(recipe)
    return _enough(shutil.disk_usage(folder).free, _FREE_DISK + _kept_bytes(recipe), f"free in {folder}")


def _kept_bytes(recipe: Recipe) -> int:
    model = 0
    with contextlib.suppress(RouterShiftError):  # the row of the model says it
        model = sum(file.stat().st_size for file in recipe.run.model_folder().glob("*.safetensors"))
    kept = recipe.learner.checkpoints
    # A checkpoint holds the weights and both moments of AdamW. One more of each is written before the oldest goes.
    return model * (kept.keep_weights + kept.keep_best + 1 + 3 * (kept.keep + kept.keep_best + 1))


async def _redis(recipe: Recipe) -> Row:
    if not recipe.names_redis:
        return _check("redis", _embedded_or_installed)
    try:
        client = await connect(recipe.redis)
    except RouterShiftError as error:
        return False, "redis", str(error)
    release = await server_release(client)
    await client.aclose()
    return True, "redis", _described(release, "redis.url")


def _embedded_or_installed() -> str:
    server = find_server()
    return _described(release_of(server), server)


def _described(release: Release, where: str) -> str:
    text = f"{release} at {where}"
    return f"{text}; {release.warning}" if release.warning else text
