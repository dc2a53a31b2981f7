"""The vLLM engine: `AsyncLLM` here, a child process that samples, and what `child/` adds inside that child.

vLLM is imported by `start`, never by importing this module.
"""

import asyncio
import gc
import importlib.util
import json
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from routershift.trajectory import Completion
from services.generation.engines.base import EngineInfo, EngineLoad, EngineOptions, EngineSampling, Weights
from services.generation.engines.model_files import OVERFLOW
from services.generation.engines.stopping import StopChecker
from services.generation.engines.vllm.concurrent import gathered, merged
from services.generation.engines.vllm.launch import launch, set_environment
from services.generation.engines.vllm.output import plausible, to_completion, to_layout, to_params
from services.generation.engines.vllm.settings import VllmSettings
from services.generation.engines.vllm.stats import LoadStats, forget_metrics
from services.generation.engines.vllm.updates import DEAD, Child, Updates
from shared.errors import (
    InvalidInputError,
    MissingDependencyError,
    PreconditionError,
    RouterShiftError,
    UnavailableError,
)
from shared.models.folder import end_ids, tensor_shapes, weight_files
from shared.models.tensors import model_tensors
from shared.models.tokenizer import read_tokenizer

# For the child to end by itself; one that stands still is killed then.
_GRACE_SECONDS = 5.0


class VllmEngine:
    """Samples with vLLM from a local model folder; see `Engine`."""

    def __init__(self, model: Path, options: EngineOptions, vllm: VllmSettings) -> None:
        """Loads nothing yet.

        Args:
            model: folder in the layout of Hugging Face: config.json and safetensors files.
            options: its threads are OpenMP threads of the child.
            vllm: what only this engine has.

        Raises:
            MissingDependencyError: vLLM is not installed.
        """
        if importlib.util.find_spec("vllm") is None:
            raise MissingDependencyError(
                "engine 'vllm' needs the package vllm; run `make install ENGINE=vllm` or choose engine 'torch'"
            )
        self._model = model
        self._options = options
        self._settings = vllm
        self._version = 0
        self._info: EngineInfo | None = None
        self._llm: Any = None
        self._child: Child | None = None
        self._failure: RouterShiftError = PreconditionError("engine 'vllm' is not started; await start() first")
        self._stats = LoadStats()
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._tokenizer: Any = None
        self._stop_ids: tuple[int, ...] = ()
        self._names = count()
        self._updating = asyncio.Lock()
        self._replacing = False  # while the child gets hold of new weights and puts them in place
        self._closed = False
        self._held = ExitStack()
        # The child dies with the thread that started it, so that thread must last as long as the engine.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vllm")

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise self._failure
        return self._info

    @property
    def version(self) -> int:
        return self._version

    @property
    def load(self) -> EngineLoad:
        states = () if self._llm is None else self._llm.output_processor.request_states.values()
        waiting = sum(state.is_prefilling for state in states)
        return EngineLoad(
            running=len(states) - waiting,
            waiting=waiting,
            kv_cache_usage=self._stats.kv_cache_usage if states else 0.0,
            preemptions=self._stats.preemptions,
            tokens=self._stats.tokens,
            replacing=None if self._child is None or not self._replacing else self._child.processor_seconds(),
        )

    async def start(self) -> None:
        """See `Engine.start`.

        Raises:
            CorruptDataError, InvalidInputError: the model folder lacks what its model has; see `model_tensors`.
            DeadlineError: vLLM has loaded the model, and then stood still.
        """
        files = weight_files(self._model)
        config = json.loads((self._model / "config.json").read_text())
        self._stop_ids = end_ids(self._model)
        sockets = Path(self._held.enter_context(TemporaryDirectory(prefix="routershift-vllm-")))
        set_environment(sockets, self._options, self._settings)
        self._shapes = await asyncio.to_thread(model_tensors, self._model)
        ignored = sorted(tensor_shapes(files).keys() - self._shapes.keys())

        def launch_and_keep() -> None:
            self._llm = launch(self._model, config, ignored, self._options, self._settings, self._stats)

        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, launch_and_keep)
            # It imports torch, which has to see the environment that `launch` sets.
            self._tokenizer = await asyncio.to_thread(read_tokenizer, self._model)
            self._child = Child(self._llm, self._stats, self._settings.answer_seconds)
            await self._child.call(self._open())
        except BaseException as error:
            await self.close()
            # vLLM hands on as a plain Exception what its child has raised.
            if not isinstance(error, UnavailableError) and type(error) is not Exception:
                raise
            raise PreconditionError(
                f"vLLM cannot sample with model folder {self._model} and has printed why ({error}); its CPU kernels "
                "want sizes that are multiples of 32, head_dim above all: change the model, or choose engine 'torch'"
            ) from error

    async def _open(self) -> None:
        """Asks the child what it has loaded, and has it sample once."""
        await self._llm.update_weight_version(str(self._version))
        routers, *_ = await self._llm.collective_rpc("describe_routers")  # of each process the same
        if not all(await self._llm.collective_rpc("is_finite")):
            raise InvalidInputError(f"model folder {self._model}: {OVERFLOW}")
        config = self._llm.model_config
        on_cpu = self._llm.vllm_config.device_config.device_type == "cpu"
        self._info = EngineInfo(
            engine="vllm",
            model=self._model.name,
            vocab_size=config.get_vocab_size(),
            max_model_len=config.max_model_len,
            eos_token_ids=self._stop_ids,
            router_layout=to_layout(self._model, routers),
            workers=self._settings.tensor_parallel_size,
            gpus=0 if on_cpu else self._settings.tensor_parallel_size,
        )
        # Rows are counted against tokens wherever a trace is made; what is left to prove is that taps saw this step.
        (probe,) = await self.generate([0], EngineSampling(1, 0.0, 1.0, 0, 2, None))
        if probe.router_trace is not None and not plausible(probe.router_trace):
            raise PreconditionError(
                f"the routers of model folder {self._model} were not seen while a probe was sampled: this MoE "
                "backend routes inside its kernel; set generation.vllm.moe_backend to 'triton', or "
                "generation.router_export to 'none'"
            )

    async def stream(self, prompt: list[int], sampling: EngineSampling) -> AsyncIterator[Completion]:
        """See `Engine.stream`."""
        samples = [self._sample(prompt, sampling, index, delta=True) for index in range(sampling.n)]
        async with aclosing(merged(samples)) as pieces:
            async for piece in pieces:
                yield piece

    async def generate(self, prompt: list[int], sampling: EngineSampling) -> list[Completion]:
        """See `Engine.generate`."""
        return await gathered([self._sample(prompt, sampling, index, delta=False) for index in range(sampling.n)])

    async def _sample(
        self, prompt: list[int], sampling: EngineSampling, index: int, *, delta: bool
    ) -> AsyncIterator[Completion]:
        """One sample as a request of its own: in pieces, or whole."""
        if self._llm is None:
            raise self._failure
        from vllm.inputs import tokens_input
        from vllm.v1.engine.exceptions import EngineDeadError

        if sampling.stop:
            StopChecker(self._tokenizer, sampling.stop)  # which refuses a model without a tokenizer
        params = to_params(sampling, index, self._stop_ids, delta=delta)
        llm, name, done, finished = self._llm, str(next(self._names)), 0, False
        try:
            queue = await llm.add_request(name, tokens_input(prompt), params)
            while not finished:
                output = queue.get_nowait() or await queue.get()
                piece, finished = output.outputs[0], output.finished
                if finished:
                    starts = [(span.version, span.start) for span in piece.weight_versions]
                else:
                    starts = llm.output_processor.request_states[queue.request_id].weight_version_starts
                yield to_completion(
                    piece, index, done, starts, self.info.router_layout, self._options.router_export, sampling.logprobs
                )
                done += len(piece.token_ids)
        except EngineDeadError as error:
            raise UnavailableError(DEAD) from error
        except asyncio.CancelledError:
            await llm.abort(name)
            raise

    async def update_weights(self, version: int, weights: Weights) -> float:
        """See `Engine.update_weights`. Runs to its end even where its caller is cancelled.

        Raises:
            CorruptDataError: a file is cut off.
            NotFoundError: a file went away after it was checked.
            PreconditionError: vLLM cannot update this family in place.
            UnavailableError: also where the update failed halfway; the engine has shut itself down then.
        """
        if self._llm is None:
            raise self._failure
        return await asyncio.shield(asyncio.create_task(self._update(version, weights)))

    async def _update(self, version: int, weights: Weights) -> float:
        async with self._updating:
            if self._llm is None or self._child is None:
                raise self._failure
            updates = Updates(self._child, self._options.update_policy, self._shapes)
            await updates.check(weights)
            self._replacing = True
            try:
                refusal = await updates.fetch(weights)
                if refusal is None:
                    pause, refusal = await updates.replace(version, self._serve)
            except Exception as error:
                failure = UnavailableError(
                    f"loading version {version} failed halfway ({error}); restart the generation service"
                )
                await self._shut_down(failure)
                raise failure from error
            finally:
                self._replacing = False
        if refusal is not None:
            raise refusal
        return pause

    def _serve(self, version: int) -> None:
        self._version = version

    async def healthy(self) -> bool:
        return self._llm is not None and not self._llm.errored

    async def close(self) -> None:
        """See `Engine.close`. An update under way fails."""
        await self._shut_down(UnavailableError("engine 'vllm' is closed; restart the generation service"))
        async with self._updating:
            pass  # it has noticed

    async def _shut_down(self, failure: RouterShiftError) -> None:
        """Ends the child; whoever waits for a sample, or comes later, gets an UnavailableError."""
        if self._closed:
            return
        self._closed, self._failure = True, failure
        child, self._child = self._child, None
        if child is not None:
            child.closed = True
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, int)  # waits for a launch under way
        llm, self._llm = self._llm, None
        if llm is not None:
            from vllm.v1.engine.exceptions import EngineDeadError

            if llm.output_handler is not None:
                llm.output_handler.cancel()
            llm.output_processor.propagate_error(EngineDeadError())
            await loop.run_in_executor(self._thread, _end, llm)
            forget_metrics()
            gc.unfreeze()
        self._held.close()
        self._thread.shutdown()


def _end(llm: Any) -> None:
    """Asks the child to end, kills it where it does not, and waits until it is gone."""
    processes = llm.engine_core.resources.engine_manager.processes
    llm.shutdown(timeout=_GRACE_SECONDS)
    for process in processes:
        process.join(_GRACE_SECONDS)
