"""All services on this machine, each its own process, with a Redis of our own unless one is named."""

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from pydantic import SecretStr

from routershift.client.channel import open_channel
from services.cli import ports
from services.cli.endpoints import REDIS_URL, Addresses, Endpoints
from services.cli.errors import ServiceEndedError
from services.cli.local import prometheus
from services.cli.local.redis import local_redis
from services.cli.local.supervisor import SupervisedProcess, first_ended, until_serving
from services.cli.preflight import preflight
from services.cli.progress_line import say
from services.cli.provenance import record
from services.cli.recipe import Recipe
from shared.errors import PreconditionError, UnavailableError
from shared.process import logs
from shared.process.exits import EXIT_PORT_TAKEN
from shared.recipes import load
from shared.rpc.address import join, local
from shared.settings import AccessSettings, RedisSettings
from shared.streams.connection import connect, server_release

_KILL_SECONDS = 5.0  # beyond a service's own drain time
_EVALUATE = ("generation", "environments", "reward")  # what the curriculum calls
_STARTS = 3  # of all services, where ports are taken while they start


class Services:
    """The running services of a recipe, and the Redis among them if it is ours."""

    def __init__(self, recipe: Recipe, redis_url: str, processes: Sequence[SupervisedProcess]) -> None:
        self.recipe = recipe
        self.redis_url = redis_url
        self.started = datetime.now(UTC)
        self._processes = processes

    def address(self, service: str) -> str:
        return _address(self.recipe, service)

    @property
    def restarts(self) -> Mapping[str, int]:
        """How often each was started again."""
        return {process.name: process.restarts for process in self._processes}

    async def ended(self) -> ServiceEndedError:
        """Waits until one of them has ended and is not started again."""
        return await first_ended(self._processes)


@contextlib.asynccontextmanager
async def services(
    recipe_file: Path | None, flags: Sequence[str], log_level: str, command: str
) -> AsyncIterator[Services]:
    """Starts everything, yields when all services serve, keeps them alive, and stops everything.

    Args:
        command: that starts them, for the run's provenance.

    Raises:
        RouterShiftError: what `preflight` finds, settings that would make another run of one that goes on, or why a
            service was given up before all served.
    """
    recipe = load(Recipe, recipe_file, os.environ, flags)
    await asyncio.to_thread(preflight, recipe)
    start = await asyncio.to_thread(record.prepare, recipe)  # reads all data: minutes, where that is large
    # The run's name may come from the clock, and its model from a branch of the Hub, which may move: settle both once,
    # for all processes.
    model = recipe.run.model_folder().absolute()
    settled = [*flags, f"run.id={recipe.run.id}", f"run.model={model}", "run.model_revision="]
    recipe = load(Recipe, recipe_file, os.environ, settled)
    async with contextlib.AsyncExitStack() as stack:
        say("starting services")
        logs.configure("supervisor", recipe.run.path / "logs", log_level)
        redis: list[SupervisedProcess] = []
        if recipe.names_redis:
            url = recipe.redis.url.get_secret_value()
        else:
            url, server = await stack.enter_async_context(local_redis(recipe.run.path / "redis", recipe.supervisor))
            redis.append(server)
        await say_release(recipe.redis.model_copy(update={"url": SecretStr(url)}))
        for change in start.changes:
            say(f"other than before: {change}")
        await asyncio.to_thread(start.write, command, recipe_file)  # not before the run is known to be ours
        serving = partial(_serving, recipe, recipe_file, settled, log_level, url, redis)
        yield await stack.enter_async_context(_on_free_ports(serving))


@contextlib.asynccontextmanager
async def _on_free_ports(serving: Callable[[], AbstractAsyncContextManager[Services]]) -> AsyncIterator[Services]:
    """Starts the services, and again at other ports where something else took one before they listened there.

    Only starts of `run` and `up` keep out of each other's way; a service that was started alone, or another program,
    may take a port at any time.

    Raises:
        PreconditionError: a port that was given is taken.
        ServiceEndedError, DeadlineError: a service does not come to serve.
    """
    async with contextlib.AsyncExitStack() as stack:
        for attempt in range(_STARTS):
            try:
                running = await stack.enter_async_context(serving())
            except ServiceEndedError as error:
                if error.code != EXIT_PORT_TAKEN or attempt + 1 == _STARTS:
                    raise
                say("a port was taken while services started; they start again at ports that are free now")
            else:
                yield running
                return


@contextlib.asynccontextmanager
async def _serving(
    recipe: Recipe,
    recipe_file: Path | None,
    settled: Sequence[str],
    log_level: str,
    url: str,
    redis: Sequence[SupervisedProcess],
) -> AsyncIterator[Services]:
    """Chooses ports, starts the services, waits until they serve, and stops them after the block."""
    async with contextlib.AsyncExitStack() as stack:
        wanted, found = stack.enter_context(ports.settled(recipe))
        if line := wanted.in_words(found):
            say(line)
        flags = [*settled, *(f"{name}={port}" for name, port in found.items())]
        recipe = load(Recipe, recipe_file, os.environ, flags)
        flags += [f"curriculum.{service}_address={_address(recipe, service)}" for service in _EVALUATE]
        flags.append(f"environments.generation_address={_address(recipe, 'generation')}")
        flags.append(f"generation.reward_address={_address(recipe, 'reward')}")
        environment = {**os.environ, "REDIS_URL": url, "PYTHONUNBUFFERED": "1"}
        own: list[SupervisedProcess] = []
        for service in recipe.services:
            arguments = [sys.executable, "-P", "-m", "services.cli.main", "serve", service, "--recorded"]
            arguments += ["--log-level", log_level]
            arguments += ["--recipe", str(recipe_file)] if recipe_file else []
            arguments += [part for flag in flags for part in ("--set", flag)]
            own.append(_supervised(recipe, service, arguments, environment))
        stack.push_async_callback(_stop_all, recipe, own)
        running = Services(recipe, url, [*redis, *own])  # before anything of this start can be recorded
        for process in own:
            process.start()
        # A run that has ended is not scraped any more.
        stack.callback((recipe.run.path / prometheus.FILE).unlink, missing_ok=True)
        _write_endpoints(running, REDIS_URL if recipe.names_redis else url)
        # A start that fails once in a way that may pass has the time of a second one.
        await until_serving(
            [*redis, *own], 2 * max(recipe.server(service).start_seconds for service in recipe.services)
        )
        yield running


def _supervised(
    recipe: Recipe, service: str, command: Sequence[str], environment: Mapping[str, str]
) -> SupervisedProcess:
    return SupervisedProcess(
        service,
        command,
        partial(_probe_health, _address(recipe, service), recipe.access),
        partial(logs.last_line, logs.path(recipe.run.path / "logs", service)),
        recipe.supervisor,
        recipe.server(service).start_seconds,
        f"{service}.start_seconds",
        environment,
    )


async def _probe_health(address: str, access: AccessSettings, timeout: float) -> bool | None:
    """Probes a service by a channel of its own each time: one that lost its server waits ever longer to reconnect."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    async with open_channel(address, access, options) as channel:
        try:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout)
        except grpc.aio.AioRpcError:
            return None
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def say_release(settings: RedisSettings) -> None:
    """Says which server holds the streams, and what it lacks.

    Raises:
        PreconditionError: it is not there; services would wait for it in vain.
    """
    try:
        redis = await connect(settings)
    except UnavailableError as error:
        raise PreconditionError(str(error)) from None
    try:
        release = await server_release(redis)
    finally:
        await redis.aclose()
    say(f"streams are in {release}")
    if release.warning:
        say(f"warning: {release.warning}")


async def _stop_all(recipe: Recipe, processes: Sequence[SupervisedProcess]) -> None:
    await asyncio.gather(
        *(process.stop(recipe.server(process.name).drain_seconds + _KILL_SECONDS) for process in processes)
    )


def _write_endpoints(running: Services, shown_redis: str) -> None:
    """For `routershift status`, for people and for Prometheus. A Redis URL that may hold a password is not written."""
    run, metrics = running.recipe.run, {}
    for service in running.recipe.services:
        server = running.recipe.server(service)
        metrics[service] = join(local(server.host), server.metrics_port)
    servers = {
        service: Addresses(grpc=running.address(service), metrics=f"http://{metrics[service]}/metrics")
        for service in running.recipe.services
    }
    Endpoints(run=run.id, redis=shown_redis, services=servers).write(run.path)
    (run.path / prometheus.FILE).write_text(prometheus.scrape_config(run.id, metrics), encoding="utf-8")


def _address(recipe: Recipe, service: str) -> str:
    server = recipe.server(service)
    return join(local(server.host), server.port)
