"""What a run writes for its report, without a run."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from services.cli.provenance import stored
from shared.tracking import records
from shared.tracking import settings as recorded
from shared.tracking.sample import TRAINED, Sample, Tokens
from shared.tracking.samples import SampleWriter


def evaluation(version: int, accuracy: float, **more: Any) -> dict[str, Any]:
    return {
        "set": "countdown",
        "main": True,
        "version": version,
        "oldest_version": version,
        "newest_version": version,
        "problems": 8,
        "samples": 32,
        "accuracy": accuracy,
        "pass_at_k": {"2": 0.6, "4": 0.7},
        "greedy_accuracy": 0.51234,
        "valid": 0.9,
        **more,
    }


def step(number: int, layers: int = 3, **more: Any) -> dict[str, Any]:
    """A record of the learner; its numbers move with its number."""
    wave = math.sin(number / 5)
    by_layer = {
        f"{name}_layer_{layer}": value + 0.01 * layer
        for layer in range(layers)
        for name, value in (("expert_overlap", 0.9 + 0.05 * wave), ("expert_load_max", 1.5 + wave / 4))
    }
    return {
        "step": number,
        "trajectories": 64,
        "tokens": 640.0 + number,
        "reward_mean": 0.4 + 0.1 * wave,
        "train_accuracy": 0.3 + 0.1 * wave,
        "staleness_mean": 0.5,
        "staleness_max": 1,
        "queue": {"prompts": 1, "rollouts": 2, "scored": 3},
        "seconds": {"wait": 0.1, "train": 0.3},
        "dropped": {"zero_variance": 8 * number},
        "grad_norm": 1.0 + 0.2 * wave,
        "skipped_updates": 0.0,
        "clip_fraction": 0.01,
        "entropy": 1.0 - number / 1000,
        "kl": 0.0,
        "gamma_mean": 0.99,
        "gamma_p10": 0.95 + 0.01 * wave,
        "ratio_mean": 1.0,
        "ratio_max": 1.3,
        **by_layer,
        **more,
    }


def write_run(
    folder: Path,
    steps: Iterable[dict[str, Any]] = (),
    evaluations: Iterable[dict[str, Any]] = (),
    settings: dict[str, Any] | None = None,
    **files: Any,
) -> Path:
    """A run's folder. `files` are its other JSON files, by their names without the suffix."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, found in ((records.LEARNER, steps), (records.EVALUATIONS, evaluations)):
        (folder / name).write_text("".join(f"{records.dumps(record)}\n" for record in found), encoding="utf-8")
    if settings is not None:
        (folder / recorded.FOLDER).mkdir(exist_ok=True)
        (folder / recorded.FOLDER / "learner.json").write_text(json.dumps(settings), encoding="utf-8")
    if "provenance" in files:
        files["provenance"] = {"schema": stored.SCHEMA, **files["provenance"]}
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def sample(step: int, index: int, tokens: int = 12, layers: int = 3, **more: Any) -> Sample:
    """A kept sample of group `index // 4`; the later ones drifted further."""
    i = np.arange(tokens)
    drift = np.abs(np.sin(i[:, None] / 3 + np.arange(layers))) * 0.01 * (1 + index % 5)
    values: dict[str, Any] = {
        "step": step,
        "trajectory": f"{step:04d}{index // 4:04d}/0/{index % 4}",
        "prompt": f"{index},7,5:26=",
        "problem": f"row {index}",
        "response": "".join(f" t{k}" for k in i),
        "outcome": TRAINED,
        "reward": float(index % 2),
        "parts": {"correct": float(index % 2)},
        "verifier": "countdown",
        "advantage": 0.5,
        "finish_reason": "stop",
        "layers": tuple(range(layers)),
        "tokens": Tokens(
            ids=i.astype(np.int32),
            pieces=tuple(f" t{k}" for k in i),
            versions=np.where(i < tokens // 2, step - 1, step).astype(np.int64),
            logprobs=(-0.1 * (1 + i % 4)).astype(np.float32),
            trained_logprobs=(-0.1 * (1 + i % 3)).astype(np.float32),
            entropy=(0.2 + 0.01 * i).astype(np.float32),
            clipped=i == 3,
            log_gamma=-drift.mean(axis=1).astype(np.float32),
            drift=drift.astype(np.float32),
        ),
    }
    return Sample(**values | more)


def write_samples(folder: Path, steps: Iterable[int], each: int, **more: Any) -> None:
    """So many samples of each step, in a run's folder."""
    writer = SampleWriter(folder, 1 << 30)
    for number in steps:
        writer.add([sample(number, index, **more) for index in range(each)])
