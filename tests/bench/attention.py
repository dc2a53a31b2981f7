"""Attention of packed samples: whole training steps without a mask, over those of rows of one width with one."""

import argparse
import sys
import tempfile
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from services.learner.data.batch import Group
from services.learner.settings import LearnerSettings
from services.learner.trainer import Trainer
from shared.errors import PreconditionError
from shared.settings import RolloutSettings, RunSettings
from tests.bench.shapes import GROUP, Shape, recorded, write_model
from tests.bench.timing import interleaved

TOKENS = 4_096  # of a step with long rows
MASKED, FLAT = "masked", "auto"
DEMO = "demo"
LONG = "long_rows"
_SHAPES = {
    # Model and step of deploy/recipes/countdown.toml.
    DEMO: Shape(
        hidden_size=96,
        num_hidden_layers=3,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=23,
        sequence_tokens=32,
        micro_batch_tokens=16_384,
        step_tokens=6_000,
    ),
    # Rows as wide as one long response, which hold many short ones.
    LONG: Shape(
        hidden_size=256,
        num_hidden_layers=2,
        num_experts=16,
        num_experts_per_tok=4,
        moe_intermediate_size=128,
        num_attention_heads=8,
        num_key_value_heads=2,
        head_dim=32,
        vocab_size=1024,
        sequence_tokens=2048,
        micro_batch_tokens=4096,
        step_tokens=TOKENS,
    ),
}
_PROMPTS = {DEMO: 16, LONG: 32}
_SHORT = {DEMO: (1, 16), LONG: (16, 224)}  # tokens of a response


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Speed over that of the masked path, by shape; that of the long rows stands for all."""
    shapes = _SHAPES | {LONG: _SHAPES[LONG].with_changes(step_tokens=arguments.attention_tokens)}
    if arguments.attention_tokens < TOKENS:
        short = _SHAPES[LONG].sequence_tokens * arguments.attention_tokens // TOKENS
        shapes[LONG] = replace(shapes[LONG], sequence_tokens=max(short, _PROMPTS[LONG] + _SHORT[LONG][1]))
    found = {name: _measured(name, shape, arguments) for name, shape in shapes.items()}
    return {"ratio_to_masked": found[LONG]["ratio_to_masked"], **found}


def _measured(name: str, shape: Shape, arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        write_model(shape, folder, torch.device(arguments.device))
        groups = _groups(name, shape, folder, arguments)
        trainers = {variant: _trainer(variant, shape, folder, arguments) for variant in (MASKED, FLAT)}
        tokens = sum(sample.input_tokens for group in groups for sample in group.samples)
        turns = {variant: partial(_step, trainer, groups) for variant, trainer in trainers.items()}
        timings = interleaved(turns, arguments.pairs)
        ratio = timings.ratio(FLAT, MASKED)
        sys.stderr.write(f"attention, {name}: {ratio.median:.2f} of the speed with a mask\n")
        return {
            "ratio_to_masked": ratio.median,
            "spread": (ratio.min, ratio.max),
            "cpu": timings.cpu(MASKED, "token", tokens),
            "tokens_per_second": {variant: timings.rate(variant, tokens).median for variant in turns},
            "implementation": {variant: trainer.attention for variant, trainer in trainers.items()},
            "tokens": tokens,
            "samples": sum(len(group.samples) for group in groups),
            "model": asdict(shape),
        }


def _groups(name: str, shape: Shape, folder: Path, arguments: argparse.Namespace) -> list[Group]:
    """As many groups as make about `shape.step_tokens`; with long rows, one response is as long as it can be."""
    rng = np.random.default_rng(0)
    prompt, (shortest, longest) = _PROMPTS[name], _SHORT[name]
    tokens, lengths = 0, []
    if name == LONG:
        tokens, lengths = shape.sequence_tokens, [shape.sequence_tokens - prompt]
    while tokens < shape.step_tokens or len(lengths) % GROUP:
        lengths.append(int(rng.integers(shortest, longest, endpoint=True)))
        tokens += prompt + lengths[-1]
    device, dtype = torch.device(arguments.device), getattr(torch, arguments.dtype)
    return recorded(shape, folder, device, dtype, prompt, lengths)


def _trainer(variant: str, shape: Shape, folder: Path, arguments: argparse.Namespace) -> Trainer:
    settings = LearnerSettings.model_validate(
        {
            "algorithm": "rspo",
            "attn_implementation": variant,
            "device": arguments.device,
            "precision": arguments.dtype,
            "threads": arguments.threads,
            "micro_batch_tokens": shape.micro_batch_tokens,
        }
    )
    run = RunSettings(id="bench", model=folder, folder=folder)
    return Trainer(settings, run, RolloutSettings(n=GROUP, max_tokens=shape.sequence_tokens))


def _step(trainer: Trainer, groups: list[Group]) -> None:
    if trainer.train_step(groups).skipped is not None:
        raise PreconditionError("the step was skipped; there is nothing to measure")
    if torch.cuda.is_available():
        torch.cuda.synchronize()
