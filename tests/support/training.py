"""A trainer on a tiny model, what to look at after a step, and groups with something changed."""

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from routershift.trajectory import Completion, RouterTrace, Trajectory, VersionSpan
from services.learner.data.batch import Group
from services.learner.trainer import Trainer
from shared.settings import RolloutSettings, RunSettings
from tests.support.models import EOS
from tests.support.settings import learner_settings

# Updates small enough to compare gradients, and no clipping of their norm.
PLAIN: dict[str, Any] = {"optimizer__learning_rate": 1e-12, "optimizer__max_grad_norm": 1e9}


def make(folder: Path, seed: int = 0, temperature: float = 1.0, **settings: Any) -> Trainer:
    rollout = RolloutSettings(temperature=temperature)
    return Trainer(learner_settings(**settings), RunSettings(model=folder, seed=seed), rollout)


def weights(trainer: Trainer, folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    trainer.export_weights(folder)
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def save(trainer: Trainer, folder: Path, meta: Mapping[str, Any]) -> None:
    with closing(trainer.snapshot(meta)) as snapshot:
        snapshot.write(folder)


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The gradients of the last update, by the name of their parameter."""
    found = {name: p.grad for name, p in trainer._parameters.items()}
    return {name: grad for name, grad in found.items() if grad is not None}


def with_completion(group: Group, change: Callable[[Completion], Completion]) -> Group:
    """The group with its second sample's completion changed."""
    samples = list(group.samples)
    samples[1] = replace(samples[1], trajectory=Trajectory(change(samples[1].completion)))
    return replace(group, samples=tuple(samples))


def with_trace(group: Group, **changes: Any) -> Group:
    def change(completion: Completion) -> Completion:
        assert completion.router_trace is not None
        return replace(completion, router_trace=replace(completion.router_trace, **changes))

    return with_completion(group, change)


def split(completion: Completion, versions: tuple[int, int]) -> tuple[VersionSpan, ...]:
    """The first token from one version, the others from another."""
    tokens = completion.token_ids.size
    return (VersionSpan(versions[0], 1), VersionSpan(versions[1], tokens - 1)) if tokens > 1 else completion.versions


def poisoned(trainer: Trainer, group: Group) -> Group:
    """The group with a token, used nowhere else, that the damaged embedding of the model makes not a number of."""
    with torch.no_grad():
        trainer._policy.model.get_input_embeddings().weight[EOS] = math.nan
    samples = tuple(replace(sample, prompt_ids=np.array([EOS], dtype=np.int32)) for sample in group.samples)
    return replace(group, samples=samples)


def filled(array: np.ndarray[Any, Any], value: float) -> np.ndarray[Any, Any]:
    copy = array.copy()
    copy.flat[-1] = value
    return copy


def trace_of(group: Group) -> RouterTrace:
    trace = group.samples[1].completion.router_trace
    assert trace is not None
    return trace
