"""All services on this machine, each its own process, with a Redis of our own unless one is named."""

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.cli.local_redis import local_redis
from services.cli.processes import Child
from services.cli.recipe import Recipe, free_ports, preflight
from shared import rpc
from shared.errors import DeadlineError, RouterShiftError
from shared.service import EXIT_BAD_INPUT
from shared.settings import SERVICES, load
from shared.streams.connection import connect

ENDPOINTS = "endpoints.json"
_READY_SECONDS = 180.0
_KILL_SECONDS = 5.0  # beyond a service's own drain time


class ServiceEndedError(RouterShiftError):
    """A service ended on its own. It has said why; `code` is its exit code."""

    def __init__(self, service: str, code: int) -> None:
        super().__init__(service, code)
        self.service = service
        self.code = code

    def __str__(self) -> str:
        return f"{self.service} ended with code {self.code}"


class Services:
    """The running services of a recipe."""

    def __init__(self, recipe: Recipe, redis_url: str, children: Sequence[Child]) -> None:
        self.recipe = recipe
        self.redis_url = redis_url
        self.children = children

    def address(self, service: str) -> str:
        return _address(self.recipe, service)

    async def ended(self) -> ServiceEndedError:
        """Waits until any service ends."""
        waits = {asyncio.create_task(child.wait()): child for child in self.children}
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        task = done.pop()
        return ServiceEndedError(waits[task].name, task.result())


@contextlib.asynccontextmanager
async def services(recipe_file: Path | None, flags: Sequence[str], log_level: str) -> AsyncIterator[Services]:
    """Starts everything, yields when all services serve, and stops everything.

    Raises:
        RouterShiftError: what `preflight` finds, or the way a service ended before it served.
    """
    recipe = load(Recipe, recipe_file, os.environ, flags)
    preflight(recipe)
    # The run's name may come from the clock: settle it once, for all processes.
    settled = [*flags, f"run.id={recipe.run.id}", *(f"{name}={port}" for name, port in free_ports(recipe).items())]
    recipe = load(Recipe, recipe_file, os.environ, settled)
    for service in ("generation", "reward"):
        settled.append(f"curriculum.{service}_address={_address(recipe, service)}")
    recipe.run.path.mkdir(parents=True, exist_ok=True)
    async with contextlib.AsyncExitStack() as stack:
        if "url" in recipe.redis.model_fields_set:
            url = recipe.redis.url.get_secret_value()
            await (await connect(recipe.redis)).aclose()
            shown = "REDIS_URL"
        else:
            url = shown = await stack.enter_async_context(local_redis(recipe.run.path / "redis"))
        environment = {**os.environ, "REDIS_URL": url, "PYTHONUNBUFFERED": "1"}
        children: list[Child] = []
        stack.push_async_callback(_stop_all, recipe, children)
        for service in SERVICES:
            command = [sys.executable, "-m", "services.cli.main", "serve", service, "--log-level", log_level]
            command += ["--recipe", str(recipe_file)] if recipe_file else []
            command += [part for flag in settled for part in ("--set", flag)]
            children.append(await Child.start(service, command, environment))
        running = Services(recipe, url, children)
        _write_endpoints(running, shown)
        await _until_ready(running)
        yield running


async def _until_ready(running: Services) -> None:
    """Until every service answers SERVING, or one of them ends."""
    ready = asyncio.ensure_future(_all_serving(running))
    ended = asyncio.create_task(running.ended())
    try:
        await asyncio.wait((ready, ended), timeout=_READY_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise ended.result()
        if not ready.done():
            raise DeadlineError(f"services did not become ready within {_READY_SECONDS} s; see the run's logs")
        await ready
    finally:
        ready.cancel()
        ended.cancel()
        await asyncio.gather(ready, ended, return_exceptions=True)


async def _all_serving(running: Services) -> None:
    await asyncio.gather(*(_serving(running.address(service)) for service in SERVICES))


async def _serving(address: str) -> None:
    async with rpc.channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5.0)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            await asyncio.sleep(0.2)


async def _stop_all(recipe: Recipe, children: Sequence[Child]) -> None:
    await asyncio.gather(*(child.stop(recipe.door(child.name).drain_seconds + _KILL_SECONDS) for child in children))


def _write_endpoints(running: Services, shown_redis: str) -> None:
    """For `routershift status` and for people. A Redis URL that may hold a password is not written."""
    doors = {
        service: {
            "grpc": running.address(service),
            "metrics": f"http://{running.recipe.door(service).host}:{running.recipe.door(service).metrics_port}/metrics",
        }
        for service in SERVICES
    }
    endpoints = {"run": running.recipe.run.id, "redis": shown_redis, "services": doors}
    (running.recipe.run.path / ENDPOINTS).write_text(json.dumps(endpoints, indent=2) + "\n", encoding="utf-8")


def _address(recipe: Recipe, service: str) -> str:
    door = recipe.door(service)
    return f"{door.host}:{door.port}"


def exit_code(error: RouterShiftError) -> int:
    """2 for what the user can mend; a service's own code where it was one that ended."""
    return (error.code or 1) if isinstance(error, ServiceEndedError) else EXIT_BAD_INPUT
