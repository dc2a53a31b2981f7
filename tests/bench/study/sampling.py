"""Samples of the torch engine's own batches, one version of the weights after the other, with no thread beside."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from routershift.trajectory import Completion, RouterExport
from services.generation.engines.base import EngineSampling, Files
from services.generation.engines.torch.batch import Batch
from services.generation.engines.torch.batch import Sequence as Sampled
from services.generation.engines.torch.model import Policy, load_folder, prepare
from shared.models.folder import end_ids
from shared.models.tensors import model_tensors

SLOTS = 512  # sequences that run at once


class Sampler:
    """The model folder that a run starts from, and every later version of its weights."""

    def __init__(self, model: Path, dtype: torch.dtype = torch.float32) -> None:
        """
        Args:
            dtype: of weights and of what is computed with them.
        """
        self._dtype = dtype
        self._first = load_folder(model, "cpu", RouterExport.TOPK)
        self._first.model.to(dtype)
        self._shapes = model_tensors(model)
        self._batch = Batch(self._first, 0, SLOTS, frozenset(end_ids(model)))

    @property
    def first(self) -> Policy:
        return self._first

    def load(self, files: Sequence[Path]) -> Policy:
        """Weights as the engine would take them: checked, and made into a model of their own."""
        policy = asyncio.run(prepare(self._first, self._shapes, Files(files)))
        policy.model.to(self._dtype)
        return policy

    def sample(
        self, policy: Policy, version: int, prompts: Sequence[list[int]], sampling: EngineSampling, seeds: Sequence[int]
    ) -> list[list[Completion]]:
        """All samples of each prompt, in order.

        Args:
            sampling: of every prompt.
            seeds: one for each prompt; sample i draws from its seed + i, as in the engine.
        """
        batch = self._batch
        batch.replace(policy, version)
        waiting = [
            Sampled(i, prompt, sampling, np.random.default_rng(seed + i).random(sampling.max_tokens))
            for prompt, seed in zip(prompts, seeds, strict=True)
            for i in range(sampling.n)
        ]
        found: dict[int, Completion] = {}
        order = list(waiting)
        waiting.reverse()
        with torch.inference_mode():
            while waiting or batch.running:
                # A prefill pass has a fixed cost: slots are filled once a quarter of them is free.
                if waiting and batch.free >= SLOTS // 4:
                    first = len(batch.running)
                    batch.running += [waiting.pop() for _ in range(min(batch.free, len(waiting)))]
                    self._take(batch.begin(first), found)
                else:
                    self._take(batch.step(), found)
                batch.sweep()
        samples = [found[id(sequence)] for sequence in order]
        return [samples[i : i + sampling.n] for i in range(0, len(samples), sampling.n)]

    def _take(self, advanced: Sequence[Sampled], found: dict[int, Completion]) -> None:
        for sequence in advanced:
            if sequence.finish_reason is not None:
                found[id(sequence)] = self._batch.completion(sequence, 0)
