"""A training step: tokens per second and peak memory with router shift, kept samples, replay and recomputed scores.

The head alone is measured with the vocabularies of large models, and attention without a mask over that with one: see
tests/bench/head.py and tests/bench/attention.py.

What is compared runs in turns on the same rollouts, through the learner's own trainer. The model is random and in the
shape of a Qwen3-MoE. The rollouts are random tokens with the log-probs and routes that this model gives them, so
that ratios and gamma are about 1 and nothing is clipped.
"""

import argparse
import gc
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers.utils import logging as transformers_logging

from services.learner.data.batch import Group
from services.learner.data.messages import Scored
from services.learner.monitoring.report import StepReport
from services.learner.monitoring.samples import SampleKeeper
from services.learner.settings import LearnerSettings, Settings
from services.learner.trainer import Trainer
from shared.errors import InvalidInputError, PreconditionError
from shared.settings import RolloutSettings, RunSettings
from shared.streams.entries import Entry
from tests.bench import attention, head
from tests.bench.memory import peak_bytes
from tests.bench.shapes import DEFAULT_SHAPE, GROUP, SHAPES, Shape, rollouts, write_model
from tests.bench.timing import Timings, interleaved
from tests.support.entries import message

BASELINE = "gmpo"
SHIFTED = "gmpo_rs"
KEEPING = "gmpo_rs_samples"
# The settings of each variant; `rspo` is GMPO with router shift.
VARIANTS: dict[str, dict[str, str]] = {
    BASELINE: {"algorithm": "gmpo"},
    SHIFTED: {"algorithm": "rspo"},
    # With samples for people, as many as by default. The next step waits until they are written, as it never does in a
    # run: no cost is left out.
    KEEPING: {"algorithm": "rspo"},
    "gmpo_rs_r3": {"algorithm": "rspo", "routing_replay": "r3"},
    "gmpo_recompute": {"algorithm": "gmpo", "proximal": "recompute"},
}
# For each parameter, float32: itself and two moments of AdamW. A step finds and keeps them.
_HELD = 3 * 4
_GRADIENT = 4
QUICK = {"shape": "tiny", "pairs": 2, "tokens": 768, "head_tokens": 64, "attention_tokens": 1024}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", default=DEFAULT_SHAPE, help=f"{', '.join(SHAPES)}; default: {DEFAULT_SHAPE}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="torch device")
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16"], help="of the forward and backward pass"
    )
    parser.add_argument("--tokens", type=int, help="in a step, about; default: the shape's")
    parser.add_argument("--pairs", type=int, default=5, help="timed rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads; default: torch's")
    parser.add_argument(
        "--experts",
        type=int,
        nargs="+",
        help="experts in a layer: time is measured with the first number, memory with each; "
        "default: the shape's, and half of it",
    )
    parser.add_argument(
        "--head-tokens", type=int, default=head.TOKENS, help="response tokens whose head is measured for its memory"
    )
    parser.add_argument(
        "--attention-tokens", type=int, default=attention.TOKENS, help="in a step that attends with and without a mask"
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Raises InvalidInputError for an unknown shape, and for numbers that measure nothing."""
    if arguments.shape not in SHAPES:
        raise InvalidInputError(f"--shape is {arguments.shape!r}; there are: {', '.join(SHAPES)}")
    shape = SHAPES[arguments.shape].with_changes(step_tokens=arguments.tokens)
    experts = arguments.experts or [shape.num_experts, shape.num_experts // 2]
    for option, number, least in (
        ("--experts", min(experts), shape.num_experts_per_tok),
        ("--pairs", arguments.pairs, 1),
        ("--threads", arguments.threads, 1),
        ("--head-tokens", arguments.head_tokens, 1),
        ("--attention-tokens", arguments.attention_tokens, 1),
    ):
        if number < least:
            raise InvalidInputError(f"{option} is {number}; it must be at least {least}")
    torch.set_num_threads(arguments.threads)
    transformers_logging.disable_progress_bar()
    peaks: dict[int, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        steps = Steps(shape.with_changes(num_experts=experts[0]), Path(folder), arguments)
        timings = steps.timings(arguments.pairs)
        peaks[experts[0]] = steps.peaks(VARIANTS)
    for number in experts[1:]:
        with tempfile.TemporaryDirectory() as folder:
            other = Steps(shape.with_changes(num_experts=number), Path(folder), arguments)
            peaks[number] = other.peaks({name: VARIANTS[name] for name in (BASELINE, SHIFTED)})
    heads = head.measure(arguments)
    attentions = attention.measure(arguments)
    first = peaks[experts[0]]
    speeds = {name: timings.rate(name, steps.tokens) for name in VARIANTS}
    ratios = {name: timings.ratio(name, BASELINE) for name in VARIANTS if name != BASELINE}
    return {
        "device": _device_name(steps.device),
        "shape": arguments.shape,
        "tokens_per_second": {name: speed.median for name, speed in speeds.items()},
        "ratio": {name: ratio.median for name, ratio in ratios.items()},
        "samples_ratio": timings.ratio(KEEPING, SHIFTED).median,
        "memory_ratio": {name: first[name] / first[BASELINE] for name in ratios},
        "spread": {
            "tokens_per_second": {name: (speed.min, speed.max) for name, speed in speeds.items()},
            "ratio": {name: (ratio.min, ratio.max) for name, ratio in ratios.items()},
            "samples_ratio": (timings.ratio(KEEPING, SHIFTED).min, timings.ratio(KEEPING, SHIFTED).max),
        },
        "cpu": timings.cpu(BASELINE, "token", steps.tokens),
        "peak_bytes": first,
        "head": heads,
        "attention": attentions,
        "router_shift_bytes_by_experts": {str(n): peak[SHIFTED] - peak[BASELINE] for n, peak in peaks.items()},
        "gamma_mean": steps.gamma_mean,
        "model": asdict(steps.shape) | {"parameters": steps.parameters},
        "tokens": steps.tokens,
        "tflops_per_second": steps.flops / 1e12 * speeds[SHIFTED].median / steps.tokens,
        "dtype": arguments.dtype,
        "threads": arguments.threads,
        "pairs": arguments.pairs,
    }


class Steps:
    """The same training step with each variant's settings.

    Trainers stay where all of them fit into half of the free memory. Else one at a time is built and warmed up when
    its turn comes.
    """

    def __init__(self, shape: Shape, folder: Path, arguments: argparse.Namespace) -> None:
        """Writes the model and records the rollouts."""
        self.shape = shape
        self.device = torch.device(arguments.device)
        self.gamma_mean = 0.0
        self.flops = 0.0  # that the updates of a step need
        self._arguments = arguments
        self._run = RunSettings(id="bench", model=folder, folder=folder)
        self._rollout = RolloutSettings(n=GROUP, max_tokens=shape.sequence_tokens)
        sys.stderr.write(f"{shape.num_experts} experts: writing the model\n")
        self.parameters = write_model(shape, folder, self.device)
        sys.stderr.write(f"{self.parameters:,} parameters; recording the rollouts\n")
        self._groups = rollouts(shape, folder, self.device, getattr(torch, arguments.dtype))
        self.tokens = sum(sample.input_tokens for group in self._groups for sample in group.samples)
        self._entries = [scored(group) for group in self._groups]
        self._trainers: dict[str, Trainer] = {}

    def timings(self, pairs: int) -> Timings:
        keep = len(VARIANTS) * self.parameters * (_HELD + _GRADIENT) < self._free_bytes() / 2

        def prepare(name: str) -> None:
            if name not in self._trainers:
                if not keep:
                    self._drop_trainers()
                sys.stderr.write(f"{name}: building the trainer, and a step that does not count\n")
                self._trainers[name] = self._trainer(VARIANTS[name])

        steps = {name: partial(self._step_of, name) for name in VARIANTS}
        try:
            return interleaved(steps, pairs, 0, prepare, self._settle)
        finally:
            self._drop_trainers()

    def peaks(self, variants: Mapping[str, Mapping[str, str]]) -> dict[str, int]:
        """The peak memory in bytes of a step of each, with nothing else around."""
        peaks = {}
        for name, changes in variants.items():
            trainer = self._trainer(changes)
            step = partial(self._step, trainer, keeps=name == KEEPING)
            peaks[name] = peak_bytes(step, self.device, self.parameters * _HELD)
            sys.stderr.write(f"{self.shape.num_experts} experts, {name}: peak {peaks[name] / 2**20:.1f} MiB\n")
            del trainer
            self._drop_trainers()
        return peaks

    def _trainer(self, changes: Mapping[str, str]) -> Trainer:
        """One that has taken a step: the optimizer has its moments, and kernels are chosen."""
        settings = LearnerSettings.model_validate(
            {
                "device": self._arguments.device,
                "precision": self._arguments.dtype,
                "threads": self._arguments.threads,
                "micro_batch_tokens": self.shape.micro_batch_tokens,
                **changes,
            }
        )
        trainer = Trainer(settings, self._run, self._rollout)
        for group in self._groups:
            trainer.check(group)
        report = self._step(trainer)
        self.gamma_mean = report.diagnostics.get("gamma_mean", self.gamma_mean)
        self.flops = report.flops
        return trainer

    def _step_of(self, name: str) -> None:
        self._step(self._trainers[name], keeps=name == KEEPING)

    def _step(self, trainer: Trainer, keeps: bool = False) -> StepReport:
        if keeps:
            keeper = SampleKeeper(Settings(run=self._run, rollout=self._rollout))
            report = trainer.train_step(self._groups, keeper.choose(trainer.step + 1, len(self._groups)))
            keeper.add(self._entries, report)
            keeper.close()
        else:
            report = trainer.train_step(self._groups)
        if report.skipped is not None:
            raise PreconditionError(f"the step was skipped ({report.skipped}); there is nothing to measure")
        return report

    def _free_bytes(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.mem_get_info(self.device)[0]
        return int(psutil.virtual_memory().available)

    def _drop_trainers(self) -> None:
        self._trainers.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _settle(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def scored(group: Group) -> Scored:
    """The group as it would come to the learner from its stream."""
    made = message(group, 0)
    entry = Entry("0-0", group.group_id, len(group.samples), made.SerializeToString(), 1)
    return Scored(entry, group, 0, 0.0, datetime.now(UTC))


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
