"""The life of a service process: whatever ends it says so in one line, SIGTERM drains it, a wedge is a crash.

listen (NOT_SERVING) -> start -> SERVING -> work ... SIGTERM -> drain -> stop -> close
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, ClassVar

import setproctitle
from redis.asyncio import Redis

from shared.errors import DeadlineError, PortTakenError, RouterShiftError
from shared.payloads.bulk import Bulk
from shared.payloads.registry import make_store
from shared.process import logs
from shared.process.exits import EXIT_INTERRUPTED, EXIT_PORT_TAKEN, exit_code
from shared.process.exposition import serve_metrics
from shared.process.metrics import GPU_HOUR_PRICE, RUN_INFO
from shared.process.ownership import locked
from shared.process.watchdog import Watchdog
from shared.rpc.address import check_port, join
from shared.rpc.server import Server
from shared.settings import BaseSettings, ServerSettings
from shared.streams.connection import connect
from shared.streams.run import Run
from shared.tracing.start import tracing
from shared.tracking import settings as recorded

log = logging.getLogger(__name__)


class Service(ABC):
    """What differs between services; `serve` does the rest."""

    name: ClassVar[str]
    has_payloads: ClassVar[bool] = False  # it writes or reads the arrays of trajectories
    is_exclusive: ClassVar[bool] = False  # a run has one at a time: it writes what no second one may

    @abstractmethod
    def register(self, server: Server) -> list[str]:
        """Adds the servicers; gives the full names of their services. Calls may come before `start` is done."""

    @abstractmethod
    async def start(self, run: Run) -> None:
        """Checks what the service depends on and makes it ready. A RouterShiftError here is the user's to fix."""

    @abstractmethod
    async def work(self, stop: asyncio.Event) -> None:
        """The stream loop. Once `stop` is set it picks nothing new, finishes what it holds and returns."""

    @abstractmethod
    async def close(self) -> None:
        """Frees what `start` made, also where `start` failed half-way."""


def main(
    service: Service,
    settings: BaseSettings,
    server_settings: ServerSettings,
    log_level: str,
    begin: Callable[[], None] | None = None,
) -> int:
    """Runs a service until it is told to stop; gives the exit code, and a line on stderr where it is not 0.

    Args:
        begin: called once the run's folder is known to be ours.
    """
    setproctitle.setproctitle(f"routershift serve {service.name}")
    logs.configure(service.name, settings.run.path / "logs", log_level)
    alone = locked(settings.run.path, service.name) if service.is_exclusive else contextlib.nullcontext()
    try:
        with alone, tracing(settings.traces, service.name, settings.run.id):
            recorded.write(settings.run.path, service.name, settings)
            if begin is not None:
                begin()
            asyncio.run(_serve(service, settings, server_settings))
    except RouterShiftError as error:
        log.info("ended: %s", error)
        sys.stderr.write(f"routershift {service.name}: {error}\n")
        return EXIT_PORT_TAKEN if isinstance(error, PortTakenError) else exit_code(error)
    except Exception:
        log.exception("%s crashed", service.name)
        return 1
    return 0


def _bulk(service: Service, settings: BaseSettings) -> Bulk | None:
    if not service.has_payloads:
        return None
    store = make_store(settings.payloads, settings.run.path)
    return Bulk(store, settings.payloads) if store else None


async def _serve(service: Service, settings: BaseSettings, server_settings: ServerSettings) -> None:
    stop = _stop_on_signals()
    watchdog = Watchdog(server_settings.watchdog_seconds, f"{service.name}.watchdog_seconds")
    watchdog.expect("the start", server_settings.start_seconds, f"{service.name}.start_seconds")
    server = Server(settings.access, server_settings)
    redis: Redis | None = None
    keeping: asyncio.Task[None] | None = None
    try:
        RUN_INFO.labels(settings.run.id).set(1)
        GPU_HOUR_PRICE.set(settings.run.gpu_hour_price)
        start_metrics(server_settings, settings.run.id)
        port = await server.listen(server_settings.host, server_settings.port, service.register(server))
        redis = await connect(settings.redis)
        run = Run(redis, settings.run.id, settings.streams, _bulk(service, settings))
        await run.open()
        if service.is_exclusive:
            await run.lease.acquire(service.name)
            keeping = asyncio.create_task(run.lease.keep())
            await run.claim_format()
        if not await _first(asyncio.create_task(service.start(run)), stop, keeping):
            # Nothing was read from a stream yet, and a model that is half loaded cannot be asked to stop loading.
            log.info("%s told to stop before it was ready", service.name)
            os._exit(0)
        watchdog.done()
        await server.serving()
        log.info("%s serves gRPC on %s", service.name, join(server_settings.host, port))
        working = asyncio.create_task(service.work(stop))
        await _first(working, stop, keeping)
        await server.drain()
        stop.set()
        done, _ = await asyncio.wait({working}, timeout=server_settings.drain_seconds)
        if not done:
            raise DeadlineError(
                f"work in progress did not finish within {service.name}.drain_seconds = "
                f"{server_settings.drain_seconds:g}; it will be redelivered; raise that where it takes longer"
            )
        working.result()
        log.info("%s drained", service.name)
    finally:
        watchdog.expect("the end", server_settings.watchdog_seconds, f"{service.name}.watchdog_seconds")
        with contextlib.suppress(asyncio.CancelledError):
            await server.stop(grace=1.0)
        await service.close()
        if keeping is not None and not keeping.done():
            keeping.cancel()
            with contextlib.suppress(RouterShiftError):
                await run.lease.release()
        if redis is not None:
            await redis.aclose()


def start_metrics(server_settings: ServerSettings, run: str) -> None:
    """Prometheus text format on `metrics_port`, each series with the label `run`.

    Raises:
        PortTakenError: the port is taken.
        PreconditionError: the host is no address of this machine.
    """
    host, port = server_settings.host, server_settings.metrics_port
    check_port(host, port, "metrics_port")
    try:
        serve_metrics(host, port, run, seconds=server_settings.receive_seconds)
    except OSError:
        check_port(host, port, "metrics_port")  # somebody may have taken it since we looked
        raise


@contextlib.asynccontextmanager
async def background(*coroutines: Coroutine[None, None, None]) -> AsyncIterator[None]:
    """Runs them beside the block and cancels them after it. If one fails, so does the block, with its error."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
            yield
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as failures:
        raise _first_cause(failures) from failures


def _first_cause(error: BaseException) -> BaseException:
    """What failed first: the rest of a group was mostly cancelled because of it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _first(task: "asyncio.Task[None]", stop: asyncio.Event, keeping: "asyncio.Task[None] | None") -> bool:
    """Waits for the task or the stop. True if the task came first; raises what it raised, or why the lease is lost."""
    stopped = asyncio.create_task(stop.wait())
    tasks: set[asyncio.Task[Any]] = {task, stopped} | ({keeping} if keeping else set())
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if keeping is not None and keeping.done():
        keeping.result()
    if task.done():
        task.result()
        return True
    return False


def _stop_on_signals() -> asyncio.Event:
    """SIGTERM and the first SIGINT set the event; a second SIGINT ends the process at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def interrupt() -> None:
        if stop.is_set():
            os._exit(EXIT_INTERRUPTED)
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, interrupt)
    return stop
