"""The parent's side of a weight update of the vLLM engine, and the patience with its child.

Nothing here imports vLLM.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from dataclasses import astuple
from typing import Any, TypeVar

import psutil

from services.generation.engines.base import Arriving, Files, UpdatePolicy, Weights
from services.generation.engines.model_files import OVERFLOW, check_specs, check_weights
from services.generation.engines.vllm.stats import LoadStats
from shared.errors import (
    CorruptDataError,
    DeadlineError,
    InvalidInputError,
    NotFoundError,
    RouterShiftError,
    UnavailableError,
)

T = TypeVar("T")

DEAD = "the process of vLLM has died; restart the generation service"

_ARRIVAL_POLL_SECONDS = 0.02
# By vLLM's names. Where its cache is cleared, what runs computes its part again.
_MODES = {
    UpdatePolicy.KEEP: "keep",
    UpdatePolicy.KEEP_CACHE: "keep",
    UpdatePolicy.WAIT: "wait",
    UpdatePolicy.ABORT: "abort",
}
# By the name that a worker gives of why weights did not arrive.
_REFUSALS = {error.__name__: error for error in (CorruptDataError, InvalidInputError, UnavailableError)}


class Child:
    """Calls to the child, each of which ends: vLLM waits for ever where the child dies or stands still."""

    def __init__(self, llm: Any, stats: LoadStats, answer_seconds: float) -> None:
        self.llm = llm
        self.closed = False  # by the engine
        self._stats = stats
        self._patience = answer_seconds

    def processor_seconds(self) -> float:
        """Processor time that its processes have used: it grows unless they stand still."""
        seconds = 0.0
        for process in self.llm.engine_core.resources.engine_manager.processes:
            with contextlib.suppress(psutil.Error):
                child = psutil.Process(process.pid)
                for each in (child, *child.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        times = each.cpu_times()
                        seconds += times.user + times.system
        return seconds

    async def rpc(self, method: str, *args: Any) -> list[Any]:
        """The answers of all workers; see `call` for errors."""
        return await self.call(self.llm.collective_rpc(method, args=args))

    async def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Awaits `work`, which asks the child.

        Raises:
            UnavailableError: it died, or the engine was closed.
            DeadlineError: it has neither answered nor sampled for `answer_seconds`.
        """
        task = asyncio.create_task(work)
        tokens, alive = self._stats.tokens, time.monotonic()
        try:
            while True:
                if self.closed or self.llm.errored:
                    raise UnavailableError(DEAD)
                if task.done():
                    return task.result()
                await asyncio.wait({task}, timeout=min(1.0, self._patience))
                if self._stats.tokens != tokens:
                    tokens, alive = self._stats.tokens, time.monotonic()
                if not task.done() and time.monotonic() - alive > self._patience:
                    raise DeadlineError(
                        "vLLM has neither answered nor sampled for generation.vllm.answer_seconds "
                        f"({self._patience:g}); restart the generation service, or raise that where the model is large"
                    )
        finally:
            task.cancel()


class Updates:
    """The steps of an update. Until `replace`, nothing has happened to the weights that serve."""

    def __init__(self, child: Child, policy: UpdatePolicy, shapes: dict[str, tuple[int, ...]]) -> None:
        """Args: shapes: of the model, by name."""
        self._child = child
        self._policy = policy
        self._shapes = shapes

    async def check(self, weights: Weights) -> None:
        """Whether the model can take them.

        Raises:
            CorruptDataError: a file is cut off.
            InvalidInputError: names or shapes differ, or a file holds NaN or infinity.
        """
        if isinstance(weights, Files):
            await asyncio.to_thread(check_weights, self._shapes, weights.paths)
        else:
            check_specs(self._shapes, weights.specs)

    async def fetch(self, weights: Weights) -> RouterShiftError | None:
        """Has each worker get hold of all weights while it samples; gives why it could not, where so.

        Raises:
            UnavailableError, DeadlineError: of the child itself; see `Child.call`.
        """
        if isinstance(weights, Arriving):
            return await self._receive(weights)
        # Under WAIT, minutes may pass before they are loaded, and a learner keeps a few versions only.
        for error in await self._child.rpc("open_policy", [str(path) for path in weights.paths]):
            if error is not None:
                return NotFoundError(f"a file of the new weights can no longer be read: {error}")
        return None

    async def _receive(self, weights: Arriving) -> RouterShiftError | None:
        """The workers are asked again and again whether they have all weights in their memory: a call that waits would
        keep them from sampling.
        """
        specs = [[spec.name, spec.dtype, list(spec.shape)] for spec in weights.specs]
        await self._child.rpc("begin_arrival", list(astuple(weights.rendezvous)), weights.first_rank, specs)
        while True:
            answers = await self._child.rpc("arrival")
            if None not in answers:
                break
            await asyncio.sleep(_ARRIVAL_POLL_SECONDS)
        for kind, message in answers:
            if kind:
                return _REFUSALS[kind](message)
        return None

    async def replace(self, version: int, serve: Callable[[int], None]) -> tuple[float, InvalidInputError | None]:
        """The seconds for which nothing was sampled, and why the new weights were taken out again, where they were.

        Where it fails, the child must not go on.

        Args:
            serve: is told before the first token of this version.

        Raises:
            UnavailableError, DeadlineError: see `Child.call`.
        """
        return await self._child.call(self._replace(version, serve))

    async def _replace(self, version: int, serve: Callable[[int], None]) -> tuple[float, InvalidInputError | None]:
        llm, keeps_cache = self._child.llm, self._policy is UpdatePolicy.KEEP_CACHE
        began = time.perf_counter()
        # `AsyncLLM.pause_generation` would sleep for 0.02 s more.
        await llm.engine_core.pause_scheduler_async(mode=_MODES[self._policy], clear_cache=not keeps_cache)
        if self._policy is UpdatePolicy.WAIT:
            began = time.perf_counter()  # it answered when the last running request ended
        refusal = None
        if all(await llm.collective_rpc("load_policy")):
            await llm.update_weight_version(str(version))
            serve(version)
        else:
            await llm.collective_rpc("restore_policy")
            refusal = InvalidInputError(f"version {version}: {OVERFLOW}")
        await llm.resume_generation()
        return time.perf_counter() - began, refusal
