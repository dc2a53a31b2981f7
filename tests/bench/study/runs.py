"""One run of the study: a cell and a seed, through the learner's own trainer and the torch engine's own batches.

Nothing here waits for anything else, so that a run follows from its cell and its seed alone, bit by bit.
"""

import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from routershift.trajectory import Completion, Trajectory
from services.curriculum.tasks.countdown import Countdown, Problem
from services.generation.engines.base import EngineSampling
from services.generation.engines.torch.model import Policy
from services.learner.data.batch import Group, Sample
from services.learner.loss import Loss
from services.learner.settings import LearnerSettings
from services.learner.trainer import Trainer
from shared.models.tokenizer import backend, load_tokenizer
from shared.settings import RolloutSettings, RunSettings
from tests.bench.study.cells import Cell, arm_of
from tests.bench.study.outcomes import Evaluation
from tests.bench.study.replay import replay_above
from tests.bench.study.sampling import Sampler
from tests.bench.study.variants import VariedLoss
from tests.bench.training.judging import Judge

_HELD_OUT_SEED = 2**50  # apart from those of the prompts
_STARVED = 3  # batches in a row without a group to learn from: nothing will change any more


@dataclass(frozen=True, slots=True)
class Protocol:
    """What all runs of a study have in common."""

    model: Path
    steps: int
    groups: int  # in a batch, those with equal rewards not counted
    samples: int  # of a group
    max_tokens: int
    prompts: int  # the most that are sampled for a batch
    held_out: int  # problems
    every: int  # batches between evaluations
    entropy_coefficient: float = 0.0  # of every arm

    def as_json(self) -> dict[str, Any]:
        """Without the folder, whose name says nothing of the model, and an entropy bonus of 0, as of the older runs."""
        found = {name: getattr(self, name) for name in self.__slots__ if name != "model"}
        return found if self.entropy_coefficient else {k: v for k, v in found.items() if k != "entropy_coefficient"}

    def learner(self, cell: Cell) -> dict[str, Any]:
        """The table [learner] of a cell."""
        return {**cell.learner, "entropy_coefficient": self.entropy_coefficient}


# Of each batch, from the trainer's diagnostics: those that are kept. Of layers, the mean.
KEPT = (
    "loss", "grad_norm", "tokens", "clip_fraction", "dropped_fraction", "entropy", "ratio_mean", "ratio_max", "kl",
    "token_lag_mean", "gamma_mean", "gamma_p10",
)  # fmt: skip
BY_LAYER = ("expert_overlap", "expert_load_entropy", "router_shift")


def run(cell: Cell, seed: int, protocol: Protocol, tell: Callable[[int], None] = lambda step: None) -> dict[str, Any]:
    """Trains to the end, or until there is nothing to learn from; gives evaluations and diagnostics, fit for JSON.

    Args:
        tell: called with the number of each batch that is done.
    """
    with tempfile.TemporaryDirectory(prefix="study-") as folder:
        return _Run(cell, seed, protocol, Path(folder)).to_end(tell)


class _Run:
    def __init__(self, cell: Cell, seed: int, protocol: Protocol, folder: Path) -> None:
        self._cell, self._seed, self._protocol, self._folder = cell, seed, protocol, folder
        settings = LearnerSettings.model_validate(protocol.learner(cell))
        run = RunSettings(
            id="study",
            model=protocol.model,
            folder=folder,
            seed=seed,
            steps=protocol.steps,
            groups_per_step=protocol.groups,
        )
        rollout = RolloutSettings(n=protocol.samples, max_tokens=protocol.max_tokens)
        arm = arm_of(cell.correction)
        loss = Loss(settings, arm.placebo.weigh(seed) if arm.placebo is not None else None)
        varied = None if arm.variant is None else VariedLoss(settings, arm.variant)
        self._trainer = Trainer(settings, run, rollout, loss=varied or loss)
        if varied is not None:
            varied.watch(self._trainer._policy.model)
        if arm.replay_above is not None:
            replay_above(self._trainer._policy.model, arm.replay_above)
        self._sampler = Sampler(protocol.model, torch.bfloat16 if arm.sampler_bfloat16 else torch.float32)
        self._tokenizer: Tokenizer = backend(load_tokenizer(protocol.model))
        self._task = Countdown(seed)
        self._judge = Judge({}, "countdown")
        self._held_out = self._task.held_out(protocol.held_out)

    def to_end(self, tell: Callable[[int], None]) -> dict[str, Any]:
        protocol = self._protocol
        policies: list[Policy] = [self._sampler.first]  # of the newest versions, the oldest first
        evaluations = [self._evaluation(0, policies[-1])]
        batches: list[dict[str, float]] = []
        starved = 0
        for step in range(protocol.steps):
            version = max(0, step - self._cell.staleness)
            groups, reward, prompts = self._groups(step, policies[0], version)
            batch = {"reward": reward, "prompts": prompts, "groups": len(groups)}
            starved = 0 if groups else starved + 1
            if groups:
                report = self._trainer.train_step(groups)
                batch |= kept(report.diagnostics) | {"skipped": float(report.skipped is not None)}
            batches.append(batch)
            policies = [*policies, self._exported()][-self._cell.staleness - 1 :]
            if (step + 1) % protocol.every == 0 or step + 1 == protocol.steps or starved == _STARVED:
                evaluations.append(self._evaluation(step + 1, policies[-1]))
            tell(step + 1)
            if starved == _STARVED:
                break
        return {
            "evaluations": [evaluation.as_json() for evaluation in evaluations],
            "batches": batches,
            "weights": self._digest(),
        }

    def _groups(self, step: int, policy: Policy, version: int) -> tuple[list[Group], float, int]:
        """The groups of a batch, the mean reward of all that was sampled, and the prompts that were.

        Prompts are those of the step, whatever other arms needed: so arms of one seed see the same ones.
        """
        protocol = self._protocol
        found: list[Group] = []
        rewards: list[float] = []
        begin = 0
        while len(found) < protocol.groups and begin < protocol.prompts:
            # Of the demo's groups half are of use: one round of twice as many prompts is enough most of the time.
            count = min(2 * protocol.groups if begin == 0 else protocol.groups, protocol.prompts - begin)
            indices = [step * protocol.prompts + begin + i for i in range(count)]
            for group in self._sampled(indices, policy, version):
                rewards += [sample.reward for sample in group.samples]
                if self._trainer.drop_reason(group) is None:
                    self._trainer.check(group)
                    found.append(group)
            begin += count
        return found[: protocol.groups], float(np.mean(rewards)), begin

    def _sampled(self, indices: Sequence[int], policy: Policy, version: int) -> list[Group]:
        problems = [self._task.train(index) for index in indices]
        prompts = [self._ids(problem) for problem in problems]
        protocol = self._protocol
        sampling = EngineSampling(protocol.samples, 1.0, 1.0, 0, protocol.max_tokens, None)
        seeds = [(self._seed << 40) + index * protocol.samples for index in indices]
        groups = []
        for index, problem, prompt, completions in zip(
            indices, problems, prompts, self._sampler.sample(policy, version, prompts, sampling, seeds), strict=True
        ):
            ids = np.array(prompt, np.int32)
            samples = [Sample(ids, Trajectory(each), self._verdict(problem, each)[0]) for each in completions]
            groups.append(Group(f"{index:08d}", tuple(samples)))
        return groups

    def _evaluation(self, step: int, policy: Policy) -> Evaluation:
        """Held-out problems, answered with the same seeds by every version of every run."""
        prompts = [self._ids(problem) for problem in self._held_out]
        seeds = [_HELD_OUT_SEED + i * 4 for i in range(len(prompts))]
        right: dict[str, list[list[bool]]] = {}
        for name, samples, temperature in (("sampled", 4, 1.0), ("greedy", 1, 0.0)):
            sampling = EngineSampling(samples, temperature, 1.0, 0, self._protocol.max_tokens, None)
            answers = self._sampler.sample(policy, step, prompts, sampling, seeds)
            right[name] = [
                [self._verdict(problem, each)[1] for each in completions]
                for problem, completions in zip(self._held_out, answers, strict=True)
            ]
        return Evaluation(
            step,
            pass_at_1=float(np.mean(right["sampled"])),
            pass_at_4=float(np.mean([any(each) for each in right["sampled"]])),
            greedy=float(np.mean(right["greedy"])),
        )

    def _verdict(self, problem: Problem, completion: Completion) -> tuple[float, bool]:
        text = self._tokenizer.decode(completion.token_ids.tolist(), skip_special_tokens=True)
        verdict = self._judge.verdict(problem.prompt, text, problem.reference)
        return verdict.reward, verdict.parts["correct"] == 1.0

    def _ids(self, problem: Problem) -> list[int]:
        ids: list[int] = self._tokenizer.encode(problem.prompt).ids
        return ids

    def _exported(self) -> Policy:
        self._trainer.export_weights(self._folder)
        return self._sampler.load(sorted(self._folder.glob("*.safetensors")))

    def _digest(self) -> str:
        """SHA-256 of the last weights."""
        digest = hashlib.sha256()
        for file in sorted(self._folder.glob("*.safetensors")):
            digest.update(file.read_bytes())
        return digest.hexdigest()


def kept(diagnostics: Mapping[str, float]) -> dict[str, float]:
    """What is kept of a batch, to five digits."""
    found = {name: diagnostics[name] for name in KEPT if name in diagnostics}
    for name in BY_LAYER:
        layers = [value for key, value in diagnostics.items() if key.startswith(f"{name}_layer_")]
        if layers:
            found[name] = float(np.mean(layers))
    return {name: float(f"{value:.5g}") for name, value in found.items()}
