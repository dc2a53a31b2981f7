"""The planner's memory against what real training steps take, and against sums that can be done by hand."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.learner.settings import LearnerSettings
from services.learner.trainer import Trainer
from services.planner import memory
from services.planner.model import read
from shared.settings import RolloutSettings, RunSettings
from tests.bench.memory import peak_bytes
from tests.bench.shapes import SHAPES, Shape, recorded, write_model

CPU = torch.device("cpu")
HELD = 12  # bytes of a parameter that a step finds: itself and two moments
SMALL = replace(
    SHAPES["tiny"], hidden_size=128, num_hidden_layers=4, moe_intermediate_size=64, vocab_size=512, head_dim=32
)


def peak(shape: Shape, folder: Path, settings: LearnerSettings, length: int, responses: int) -> int:
    """The most bytes that tensors take in a step on this many responses, each a sequence of `length` tokens."""
    prompt = 16
    groups = recorded(shape, folder, CPU, torch.float32, prompt, [length - prompt] * responses)
    trainer = Trainer(settings, RunSettings(id="peak", model=folder, folder=folder), RolloutSettings(max_tokens=length))
    for group in groups:
        trainer.check(group)
    trainer.train_step(groups)
    return peak_bytes(lambda: trainer.train_step(groups), CPU, HELD * read(folder).parameters)


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, {}),
        ({"num_experts": 32, "num_experts_per_tok": 4}, {}),
        ({"moe_intermediate_size": 512}, {}),
        ({"num_hidden_layers": 8}, {"activation_checkpointing": True}),
        ({"vocab_size": 32768}, {"head_chunk_bytes": 8 << 20}),
        ({"hidden_size": 256}, {"algorithm": "gmpo"}),
        ({"num_hidden_layers": 8}, {"precision": "bfloat16"}),
    ],
    ids=["small", "experts", "wide", "checkpointing", "vocabulary", "hidden", "bfloat16"],
)
def test_the_learner_takes_what_is_planned(
    changes: dict[str, int], settings: dict[str, object], tmp_path: Path
) -> None:
    """Several micro-batches, so that gradients are there while activations are kept."""
    length = 256
    shape = SHAPES["tiny"].with_changes(**changes) if not changes else replace(SMALL, **changes)
    shape = replace(shape, sequence_tokens=length, micro_batch_tokens=4 * length)
    write_model(shape, tmp_path, CPU)
    learner = LearnerSettings.model_validate({"micro_batch_tokens": 4 * length, **settings})
    planned = memory.on(
        "cpu", [p for p in memory.learner(read(tmp_path), learner, 1, length) if p.what != "weights to publish"]
    )
    assert planned == pytest.approx(peak(shape, tmp_path, learner, length, 12), rel=0.1)
