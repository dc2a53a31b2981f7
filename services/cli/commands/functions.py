"""Give a Redis the functions that services call: needed where their users may not."""

import argparse
import asyncio
import os
import sys

from services.cli.signals import interruptible
from shared.errors import PreconditionError, UnavailableError
from shared.process.exits import EXIT_OK
from shared.recipes import redis_of
from shared.settings import RedisSettings
from shared.streams.connection import at, connect, primaries, server_release
from shared.streams.functions import library, load


def add_arguments(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument(
        "--keep", action="store_true", help="stay, and load them again where Redis has lost them with its data"
    )
    how.add_argument("--print", action="store_true", help="only print them, as `redis-cli -x FUNCTION LOAD` takes them")


def run(arguments: argparse.Namespace) -> int:
    if arguments.print:
        print(library().text, end="")
        return EXIT_OK
    if arguments.keep:
        return interruptible(keep(redis_of(os.environ)))
    loaded = asyncio.run(functions(redis_of(os.environ)))
    print(f"{library().name}: {'loaded' if loaded else 'was there'}")
    return EXIT_OK


async def keep(settings: RedisSettings, seconds: float = 10.0) -> None:
    """Loads the library whenever it is not there, without end.

    Args:
        seconds: between looks. A Redis that does not answer is asked again then.

    Raises:
        PreconditionError: as `functions`.
    """
    while True:
        try:
            if await functions(settings):
                print(f"{library().name}: loaded", flush=True)
        except UnavailableError as error:
            print(error, file=sys.stderr, flush=True)
        await asyncio.sleep(seconds)


async def functions(settings: RedisSettings) -> bool:
    """Loads the library of this version, beside those of others, on all nodes of a Cluster; False where it was there.

    Raises:
        UnavailableError: no Redis answers.
        PreconditionError: it is older than 7.0 and has no functions, or its user may not load any.
    """
    redis = await connect(settings)
    try:
        release = await server_release(redis)
        if not release.has_functions:
            raise PreconditionError(
                f"{release} has no functions: services load scripts themselves; take Redis 7 or Valkey"
            )
        loaded = await load(redis)
        for node in await primaries(redis):  # a run may come to any of them, and its services may not load
            client = at(settings, node)
            try:
                loaded |= await load(client)
            finally:
                await client.aclose()
        return loaded
    finally:
        await redis.aclose()
