"""A synchronous run as a loop in one process: sample, judge, train, load the weights; no services and no streams."""

from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from routershift.trajectory import Trajectory
from services.curriculum.origin import make_problems
from services.curriculum.problems import Problem
from services.curriculum.settings import Settings as CurriculumSettings
from services.generation.engines.base import Engine, EngineSampling
from services.generation.engines.registry import make_engine
from services.generation.routes import as_exported
from services.generation.settings import GenerationSettings
from services.generation.settings import Settings as OfGeneration
from services.learner.data.batch import Group, Sample
from services.learner.settings import Settings as LearnerSettings
from services.learner.trainer import Trainer
from services.reward.verifiers.base import Item, VerifierSettings
from services.reward.verifiers.countdown import CountdownVerifier
from shared.models.tokenizer import backend, load_tokenizer
from shared.recipes import load
from tests.support.engines import publish, started


@dataclass(frozen=True, slots=True)
class Looped:
    """What a run came to."""

    trained: list[list[str]]  # by step: the prompts that were trained on, in order
    weights: dict[str, torch.Tensor]  # after the last step


async def run(recipe: Path, flags: list[str], folder: Path) -> Looped:
    """Runs a countdown recipe. `folder` gets the weights of each step."""
    curriculum = load(CurriculumSettings, recipe, {}, flags)
    learner = load(LearnerSettings, recipe, {}, flags)
    problems = make_problems(curriculum)
    trainer = Trainer(learner.learner, learner.run, learner.rollout)
    indices, trained, weights = count(), [], folder
    generation = load(OfGeneration, recipe, {}, flags)
    async with started(make_engine(generation)) as engine:
        for step in range(learner.run.steps):
            groups: list[Group] = []
            while len(groups) < learner.run.groups_per_step:
                index = next(indices)
                group = await _group(index, problems.train(index), engine, generation.generation, learner)
                if trainer.drop_reason(group) is None:
                    groups.append(group)
            trainer.train_step(groups)
            trained.append([group.group_id for group in groups])
            weights = folder / str(step)
            weights.mkdir(parents=True)
            trainer.export_weights(weights)
            await publish(engine, weights)
    return Looped(trained, load_file(weights / "model.safetensors"))


async def _group(
    index: int, problem: Problem, engine: Engine, generation: GenerationSettings, settings: LearnerSettings
) -> Group:
    rollout, tokenizer = settings.rollout, backend(load_tokenizer(settings.run.model_folder()))
    prompt = list(tokenizer.encode(problem.prompt).ids)
    seed = (settings.run.seed << 40) + index * rollout.n
    sampling = EngineSampling(rollout.n, rollout.temperature, 1.0, 0, rollout.max_tokens, seed)
    judge = CountdownVerifier(VerifierSettings())
    samples = []
    for completion in await engine.generate(prompt, sampling):
        response = tokenizer.decode(completion.token_ids.tolist(), skip_special_tokens=True)
        verdict = judge.verify(Item(problem.prompt, response, problem.reference))
        samples.append(
            Sample(np.array(prompt, dtype=np.int32), Trajectory(as_exported(completion, generation)), verdict.reward)
        )
    return Group(f"{index:08d}/0", tuple(samples))
