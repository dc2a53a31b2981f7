"""The vLLM engine: `AsyncLLM` here, a child process that samples, and the seam of `vllm_capture` inside that child.

vLLM is imported by `start`, never by importing this module.
"""

import asyncio
import gc
import importlib.util
import json
import time
from collections.abc import AsyncIterator, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from services.generation.engines.base import EngineInfo, EngineLoad, EngineOptions, EngineSampling
from services.generation.engines.model_files import check_shapes, tensor_shapes, weight_files
from services.generation.engines.vllm_launch import launch
from services.generation.engines.vllm_output import to_completion
from services.generation.engines.vllm_settings import VllmSettings
from shared.errors import MissingDependencyError, PreconditionError, RouterShiftError, UnavailableError
from shared.trajectory import Completion, RouterLayout, ScoreFunction

_DEAD = "the process of vLLM has died; restart the generation service"

# Families whose experts vLLM 0.32 leaves as they are in an update, without saying so.
_NOT_UPDATABLE = {"gpt_oss"}


class VllmEngine:
    """Samples with vLLM from a local model folder, on CPU in float32; see `Engine`."""

    def __init__(
        self,
        model: Path,
        options: EngineOptions,
        vllm: VllmSettings,
    ) -> None:
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
        self._failure: RouterShiftError = PreconditionError("engine 'vllm' is not started; await start() first")
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._stop_ids: list[int] = []
        self._names = count()
        self._updating = asyncio.Lock()
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
        if self._llm is None:
            return EngineLoad(0, 0)
        states = self._llm.output_processor.request_states.values()
        waiting = sum(state.is_prefilling for state in states)
        return EngineLoad(len(states) - waiting, waiting)

    async def start(self) -> None:
        """See `Engine.start`.

        Raises:
            CorruptDataError: a weights file of the model folder is cut off.
        """
        self._shapes = await asyncio.to_thread(lambda: tensor_shapes(weight_files(self._model)))
        config = json.loads((self._model / "config.json").read_text())
        eos = config.get("eos_token_id")
        if eos is None:
            raise PreconditionError(f"{self._model}/config.json has no eos_token_id; add the id that ends a response")
        self._stop_ids = eos if isinstance(eos, list) else [eos]

        sockets = Path(self._held.enter_context(TemporaryDirectory(prefix="routershift-vllm-")))

        def launch_and_keep() -> None:
            self._llm = launch(self._model, config.get("architectures", []), sockets, self._options, self._settings)

        try:
            await asyncio.get_running_loop().run_in_executor(self._thread, launch_and_keep)
            await self._while_alive(self._open())
        except UnavailableError as error:
            await self.close()
            raise PreconditionError(
                f"vLLM died of model folder {self._model} while it sampled a probe, and has printed why; its CPU "
                "kernels want sizes that are multiples of 32, head_dim above all: change the model, or choose engine "
                "'torch'"
            ) from error
        except BaseException:
            await self.close()
            raise

    async def _open(self) -> None:
        """Asks the child what it has loaded, and has it sample once."""
        await self._llm.update_weight_version(str(self._version))
        (routers,) = await self._llm.collective_rpc("describe_routers")
        config = self._llm.model_config
        self._info = EngineInfo(
            engine="vllm",
            model=self._model.name,
            vocab_size=config.get_vocab_size(),
            max_model_len=config.max_model_len,
            eos_token_id=self._stop_ids[0],
            router_layout=None if routers is None else self._layout(*routers),
        )
        # Rows are counted against tokens wherever a trace is made; what is left to prove is that the taps fired.
        (probe,) = await self.generate([0], EngineSampling(1, 0.0, 1.0, 0, 2, None))
        if probe.router_trace is not None and not np.isfinite(probe.router_trace.scores).all():
            raise PreconditionError(
                f"the routers of model folder {self._model} were not seen while a probe was sampled: this MoE "
                "backend routes inside its kernel; use the pinned vLLM release, or engine 'torch'"
            )

    def _layout(self, layer_ids: list[int], num_experts: int, top_k: int, score_function: str) -> RouterLayout:
        if score_function not in set(ScoreFunction):
            raise PreconditionError(
                f"the routers of model folder {self._model} score with {score_function!r}; "
                f"supported are {', '.join(ScoreFunction)}"
            )
        return RouterLayout(tuple(layer_ids), num_experts, top_k, ScoreFunction(score_function))

    async def _while_alive(self, work: Coroutine[Any, Any, None]) -> None:
        """Awaits calls to the child, for vLLM waits for ever where the child dies before it answers."""
        task = asyncio.create_task(work)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=1.0)
                if self._llm.errored:
                    raise UnavailableError(_DEAD)
            task.result()
        finally:
            task.cancel()

    async def stream(self, prompt: list[int], sampling: EngineSampling) -> AsyncIterator[Completion]:
        """See `Engine.stream`."""
        pieces: asyncio.Queue[Completion | Exception] = asyncio.Queue()

        async def pump(index: int) -> None:
            try:
                async for piece in self._sample(prompt, sampling, index, delta=True):
                    pieces.put_nowait(piece)
            except Exception as error:
                pieces.put_nowait(error)

        tasks = [asyncio.create_task(pump(index)) for index in range(sampling.n)]
        try:
            unfinished = sampling.n
            while unfinished:
                piece = await pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                unfinished -= piece.finish_reason is not None
                yield piece
        finally:
            await _cancel(tasks)

    async def generate(self, prompt: list[int], sampling: EngineSampling) -> list[Completion]:
        """See `Engine.generate`."""

        async def whole(index: int) -> Completion:
            (completion,) = [piece async for piece in self._sample(prompt, sampling, index, delta=False)]
            return completion

        tasks = [asyncio.create_task(whole(index)) for index in range(sampling.n)]
        try:
            return await asyncio.gather(*tasks)
        finally:
            await _cancel(tasks)

    async def _sample(
        self, prompt: list[int], sampling: EngineSampling, index: int, *, delta: bool
    ) -> AsyncIterator[Completion]:
        """One sample as a request of its own: in pieces, or whole."""
        if self._llm is None:
            raise self._failure
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind
        from vllm.v1.engine.exceptions import EngineDeadError

        params = SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            max_tokens=sampling.max_tokens,
            seed=None if sampling.seed is None else (sampling.seed + index) % 2**64,
            stop_token_ids=self._stop_ids,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA if delta else RequestOutputKind.FINAL_ONLY,
        )
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
                yield to_completion(piece, index, done, starts, self.info.router_layout)
                done += len(piece.token_ids)
        except EngineDeadError as error:
            raise UnavailableError(_DEAD) from error
        except asyncio.CancelledError:
            await llm.abort(name)
            raise

    async def update_weights(self, version: int, files: list[Path]) -> float:
        """See `Engine.update_weights`. Runs to its end even where its caller is cancelled.

        Raises:
            CorruptDataError: a file is cut off.
            PreconditionError: vLLM cannot update this family in place.
            UnavailableError: the update failed halfway; the engine has shut itself down.
        """
        if self._llm is None:
            raise self._failure
        family = self._llm.model_config.hf_text_config.model_type
        if family in _NOT_UPDATABLE:
            raise PreconditionError(
                f"model_type is {family!r}, which vLLM does not update in place; "
                "restart the generation service with the new weights as its model"
            )
        return await asyncio.shield(asyncio.create_task(self._update(version, files)))

    async def _update(self, version: int, files: list[Path]) -> float:
        async with self._updating:
            check_shapes(self._shapes, await asyncio.to_thread(tensor_shapes, files))
            if self._llm is None:
                raise self._failure
            began = time.perf_counter()
            try:
                await self._while_alive(self._replace(version, files))
            except Exception as error:
                failure = UnavailableError(
                    f"loading version {version} failed halfway ({error}); restart the generation service"
                )
                await self._shut_down(failure)
                raise failure from error
            return time.perf_counter() - began

    async def _replace(self, version: int, files: list[Path]) -> None:
        # Requests are kept, but not their KV cache: the old weights computed it, and the new ones will again.
        await self._llm.pause_generation(mode="keep", clear_cache=True)
        await self._llm.collective_rpc("load_policy", args=([str(file) for file in files],))
        await self._llm.update_weight_version(str(version))
        self._version = version
        await self._llm.resume_generation()

    async def healthy(self) -> bool:
        return self._llm is not None and not self._llm.errored

    async def close(self) -> None:
        """See `Engine.close`."""
        async with self._updating:
            await self._shut_down(UnavailableError("engine 'vllm' is closed; restart the generation service"))

    async def _shut_down(self, failure: RouterShiftError) -> None:
        """Ends the child; whoever waits for a sample, or comes later, gets an UnavailableError."""
        if self._closed:
            return
        self._closed, self._failure = True, failure
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, int)  # waits for a launch under way
        llm, self._llm = self._llm, None
        if llm is not None:
            from vllm.v1.engine.exceptions import EngineDeadError

            if llm.output_handler is not None:
                llm.output_handler.cancel()
            llm.output_processor.propagate_error(EngineDeadError())
            await loop.run_in_executor(self._thread, llm.shutdown)
            gc.unfreeze()
        self._held.close()
        self._thread.shutdown()


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancels those that still run, and waits until they have freed what they hold."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
