"""The torch engine: transformers models with continuous batching, in one thread of this process.

For machines and models where vLLM is not at hand, and a second implementation to hold vLLM against. Everything is
float32. The asyncio side queues requests; the thread owns the model and the KV cache, and sequences join and leave
between two decoding steps.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer

from routershift.trajectory import Completion, FinishReason
from services.generation.engines.base import (
    EngineInfo,
    EngineLoad,
    EngineOptions,
    EngineSampling,
    UpdatePolicy,
    Weights,
)
from services.generation.engines.stopping import StopChecker
from services.generation.engines.torch.batch import Batch, Sequence
from services.generation.engines.torch.handover import Request, Update, deliver, fail, resolve
from services.generation.engines.torch.model import Policy, load_folder, prepare
from services.generation.engines.torch.probe import probe
from shared.errors import PreconditionError, RouterShiftError, UnavailableError
from shared.models.folder import end_ids
from shared.models.tensors import model_tensors
from shared.models.tokenizer import read_tokenizer

log = logging.getLogger(__name__)


class TorchEngine:
    """Samples with transformers from a local model folder, in float32; see `Engine`."""

    def __init__(
        self,
        model: Path,
        options: EngineOptions,
        device: str = "cpu",
    ) -> None:
        """Loads nothing yet.

        Args:
            model: folder in the layout of Hugging Face: config.json and safetensors files.
            options: its threads are those of torch, in the whole process.
            device: where torch computes.
        """
        self._model = model
        self._options = options
        self._seeds = np.random.default_rng(options.seed)
        self._device = device
        self._version = 0
        self._info: EngineInfo | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._tokenizer: Tokenizer | None = None
        self._updating = asyncio.Lock()
        self._thread: threading.Thread | None = None
        # Guards what follows, which the loop and the thread share.
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Sequence, Request]] = deque()
        self._running: dict[Sequence, Request] = {}
        self._updates: deque[Update] = deque()
        self._sampled = 0
        self._closing = False
        self._failure: RouterShiftError | None = PreconditionError("engine 'torch' is not started; await start() first")

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise PreconditionError("engine 'torch' is not started; await start() first")
        return self._info

    @property
    def version(self) -> int:
        return self._version

    @property
    def load(self) -> EngineLoad:
        with self._changed:
            cached = sum(len(sequence.prompt) + len(sequence.tokens) for sequence in self._running)
            room = 1 if self._info is None else self._options.max_num_seqs * self._info.max_model_len
            return EngineLoad(len(self._running), len(self._waiting), cached / room, tokens=self._sampled)

    async def start(self) -> None:
        """See `Engine.start`."""
        self._loop = asyncio.get_running_loop()
        torch.set_num_threads(self._options.threads)
        policy = await asyncio.to_thread(self._load)
        config = policy.model.config
        stop_ids = end_ids(self._model)
        longest = self._options.max_model_len or config.max_position_embeddings
        self._info = EngineInfo(
            engine="torch",
            model=self._model.name,
            vocab_size=config.vocab_size,
            max_model_len=longest,
            eos_token_ids=stop_ids,
            router_layout=policy.layout,
            gpus=int(policy.device.type == "cuda"),
        )
        self._batch = Batch(policy, self._version, self._options.max_num_seqs, frozenset(stop_ids))
        self._failure = None
        self._thread = threading.Thread(target=self._run, name="torch-engine", daemon=True)
        self._thread.start()

    def _load(self) -> Policy:
        self._shapes = model_tensors(self._model)
        policy = load_folder(self._model, self._device, self._options.router_export)
        self._tokenizer = read_tokenizer(self._model)
        probe(policy)
        return policy

    def stream(self, prompt: list[int], sampling: EngineSampling) -> AsyncIterator[Completion]:
        """See `Engine.stream`.

        Raises:
            InvalidInputError: there are stop strings, and the model folder has no tokenizer.json.
        """
        return self._pieces(prompt, sampling, Request(whole=False))

    async def generate(self, prompt: list[int], sampling: EngineSampling) -> list[Completion]:
        """See `Engine.generate`."""
        samples = [sample async for sample in self._pieces(prompt, sampling, Request(whole=True))]
        return sorted(samples, key=lambda sample: sample.index)

    async def _pieces(self, prompt: list[int], sampling: EngineSampling, request: Request) -> AsyncIterator[Completion]:
        seed = int(self._seeds.integers(2**63)) if sampling.seed is None else sampling.seed
        sequences = [
            Sequence(
                index=i,
                prompt=prompt,
                sampling=sampling,
                uniforms=np.random.default_rng(seed + i).random(sampling.max_tokens),
                stop=StopChecker(self._tokenizer, sampling.stop) if sampling.stop else None,
            )
            for i in range(sampling.n)
        ]
        with self._changed:
            if self._failure is not None:
                raise self._failure
            self._waiting.extend((sequence, request) for sequence in sequences)
            self._changed.notify()
        unfinished = sampling.n
        try:
            while unfinished:
                piece = await request.pieces.get()
                if isinstance(piece, RouterShiftError):
                    raise piece
                unfinished -= piece.finish_reason is not None
                yield piece
        finally:
            if unfinished:
                self._cancel(sequences)

    def _cancel(self, sequences: list[Sequence]) -> None:
        with self._changed:
            for sequence in sequences:
                sequence.finish_reason = sequence.finish_reason or FinishReason.ABORTED
                self._running.pop(sequence, None)
            gone = set(sequences)
            self._waiting = deque(entry for entry in self._waiting if entry[0] not in gone)

    async def update_weights(self, version: int, weights: Weights) -> float:
        """See `Engine.update_weights`.

        Raises:
            CorruptDataError: a file is cut off.
        """
        async with self._updating:
            policy = await prepare(self._batch.policy, self._shapes, weights)
            await asyncio.to_thread(probe, policy)
            update = Update(version, policy, self._loop.create_future())
            with self._changed:
                if self._failure is not None:
                    raise self._failure
                self._updates.append(update)
                self._changed.notify()
            return await update.done

    async def healthy(self) -> bool:
        return self._failure is None

    async def close(self) -> None:
        """See `Engine.close`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        """The thread."""
        failure = UnavailableError("the torch engine is closed; start the generation service again")
        try:
            with torch.inference_mode():
                while self._turn():
                    pass
        except Exception as error:
            log.exception("the torch engine died")
            failure = UnavailableError(f"the torch engine died of {error!r}; restart the generation service")
        with self._changed:
            self._failure = failure
            requests = {request for _, request in self._waiting} | set(self._running.values())
            self._waiting.clear()
            self._running.clear()
        self._loop.call_soon_threadsafe(fail, failure, requests, list(self._updates))

    def _turn(self) -> bool:
        """New weights if any, then the first token of who joins, then one token for all. False: closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._closing or self._updates or self._waiting or self._running)
            if self._closing:
                return False
        self._batch.sweep()
        self._update()
        self._join()
        if self._batch.running:
            self._deliver(self._batch.step())
        return True

    def _update(self) -> None:
        """New weights, where there are any and the policy lets them in."""
        policy = self._options.update_policy
        while self._updates and (policy is not UpdatePolicy.WAIT or not self._batch.running):
            began = time.perf_counter()
            if policy is UpdatePolicy.ABORT:
                self._abort()
            update = self._updates[0]
            self._batch.replace(update.policy, update.version, keep_cache=policy is UpdatePolicy.KEEP_CACHE)
            self._version = update.version
            self._updates.popleft()
            self._loop.call_soon_threadsafe(resolve, update.done, time.perf_counter() - began)

    def _abort(self) -> None:
        """Ends all samples, begun or not, with what they have."""
        pieces = []
        with self._changed:
            for sequence, request in chain(self._running.items(), self._waiting):
                sequence.finish_reason = FinishReason.ABORTED
                delivered = 0 if request.whole else len(sequence.tokens)
                pieces.append((request, self._batch.completion(sequence, delivered)))
            self._running.clear()
            self._waiting.clear()
        self._loop.call_soon_threadsafe(deliver, pieces)
        self._batch.sweep()

    def _join(self) -> None:
        """Those who wait take the free slots and get their first token; nobody under WAIT while new weights are due."""
        if self._updates and self._options.update_policy is UpdatePolicy.WAIT:
            return
        batch = self._batch
        first = len(batch.running)
        with self._changed:
            # A prefill pass has a fixed cost: while many wait, let an eighth of the slots come free before paying it.
            joining = min(batch.free, len(self._waiting))
            if joining < len(self._waiting) and joining * 8 < self._options.max_num_seqs:
                joining = 0
            for _ in range(joining):
                sequence, request = self._waiting.popleft()
                self._running[sequence] = request
                batch.running.append(sequence)
        if first < len(batch.running):
            self._deliver(batch.begin(first))
            batch.sweep()

    def _deliver(self, advanced: list[Sequence]) -> None:
        """Hands the newest token of streamed samples, and ended samples, to those who wait for them."""
        pieces = []
        with self._changed:
            self._sampled += len(advanced)
            for sequence in advanced:
                request = self._running.get(sequence)
                ended = sequence.finish_reason is not None
                if request is None or (request.whole and not ended):
                    continue
                if ended:
                    del self._running[sequence]
                first = 0 if request.whole else len(sequence.tokens) - 1
                pieces.append((request, self._batch.completion(sequence, first)))
        if pieces:
            self._loop.call_soon_threadsafe(deliver, pieces)
