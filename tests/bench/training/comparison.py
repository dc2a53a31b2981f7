"""A recipe trained by all sides in turns, and what follows from that."""

import json
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from services.cli.recipe import Recipe
from services.curriculum.origin import make_problems
from services.curriculum.problems import Problem, Problems
from shared.errors import InvalidInputError
from shared.models.tokenizer import load_tokenizer
from shared.recipes import load
from tests.bench.timing import Spread
from tests.bench.training import held_out, ours, stages, trl
from tests.bench.training.figures import Point, Training, paired, seconds_to
from tests.bench.training.judging import Judge
from tests.support import trl as environment

TRL, SYNCHRONOUS = "trl", "synchronous"
_OVER_TRL = ("rollouts_per_second", "trained_rollouts_per_second", "tokens_per_second", "cpu_seconds_per_rollout")


@dataclass(frozen=True, slots=True)
class Options:
    """What of a comparison the command line says."""

    engines: Sequence[str]  # the first is the one that ratios are of
    rounds: int
    seed: int  # of the first round; each has the next
    pinned: bool
    threads: int  # of TRL and of what is measured afterwards; ours has one in the learner and one in generation
    folder: Path
    evaluate_from: int  # the first step whose held-out accuracy is measured
    stage_rounds: int  # the first rounds, in which each stage is measured alone too


@dataclass(frozen=True)
class Workload:
    """What all sides train."""

    name: str
    recipe_file: Path
    settings: Mapping[str, object]  # on top of the recipe, for all sides
    save_every: int  # steps between versions whose held-out accuracy is measured
    targets: Sequence[float]  # accuracies to which the time is told
    target: float  # the one of the ratio
    problems: int  # held out
    samples: int  # responses to each
    stage_steps: int = 12  # of the learner alone; generation alone samples as many groups
    trl_micro_batch: int = 0  # see `trl.Job`

    @cached_property
    def recipe(self) -> Recipe:
        return load(Recipe, self.recipe_file, {}, [f"{name}={value}" for name, value in self.settings.items()])

    def seeded(self, seed: int) -> "Workload":
        return replace(self, settings={**self.settings, "run.seed": seed})

    @cached_property
    def origin(self) -> Problems:
        return make_problems(self.recipe)

    def train(self, groups: int) -> list[Problem]:
        """The first training problems, in order."""
        return [self.origin.train(i) for i in range(groups)]

    @property
    def is_correct(self) -> Callable[[Problem, str], bool]:
        judge = self.judge

        def ask(problem: Problem, text: str) -> bool:
            return judge.verdict(problem.prompt, text, problem.reference).parts["correct"] == 1

        return ask

    @cached_property
    def judge(self) -> Judge:
        return Judge(self.recipe.reward.verifiers, self.origin.train(0).verifier)


def compare(workload: Workload, options: Options) -> dict[str, Any]:
    """Every side once in each round, forwards and backwards in turns, and each stage alone beside them.

    Raises:
        InvalidInputError: there are fewer held-out problems than asked for, or no step to judge.
        UnavailableError: TRL cannot be installed, which is tried first, or a run failed.
    """
    (main, *_) = workload.origin.held_out()
    if len(main.problems) < workload.problems:
        raise InvalidInputError(
            f"--held-out is {workload.problems}; {workload.recipe_file.name} evaluates {len(main.problems)} problems: "
            "ask for fewer"
        )
    if not 1 <= options.evaluate_from <= (steps := workload.recipe.run.steps):
        raise InvalidInputError(f"--evaluate-from is {options.evaluate_from}; it must be from 1 to the steps, {steps}")
    environment.python()
    sides = [*options.engines, SYNCHRONOUS, TRL]
    runs: dict[str, list[Training]] = {side: [] for side in sides}
    curves: dict[str, list[list[Point]]] = {side: [] for side in sides}
    alone: dict[str, list[stages.Alone]] = {"generation": [], "learner": []}
    for number in range(options.rounds):
        seeded = workload.seeded(options.seed + number)
        folder = options.folder / f"{workload.name}-{number}"
        for side in sides[:: 1 if number % 2 == 0 else -1]:
            _say(f"{workload.name}, round {number + 1}/{options.rounds}, seed {options.seed + number}: {side}")
            trained = _train(seeded, side, folder / side, options)
            runs[side].append(trained)
            curves[side].append(_curve(seeded, trained, options))
            shutil.rmtree(folder / side)
        if number < options.stage_rounds:
            _say(f"{workload.name}, round {number + 1}/{options.rounds}: each stage alone")
            for stage, found in _alone(seeded, options, folder).items():
                alone[stage].append(found)
        shutil.rmtree(folder)
        # What was measured is not lost where a later round fails, or takes too long.
        _say(json.dumps(_ratios(workload, options.engines[0], runs, curves)))
    return result(workload, options, runs, curves, alone)


def result(
    workload: Workload,
    options: Options,
    runs: Mapping[str, Sequence[Training]],
    curves: Mapping[str, Sequence[Sequence[Point]]],
    alone: Mapping[str, Sequence[stages.Alone]],
) -> dict[str, Any]:
    """What a workload shows: ratios first, then all that they were made of."""
    first, *others = options.engines
    return {
        **_ratios(workload, first, runs, curves),
        "slowest_stage_share": _median(_shares(runs[first], alone)),
        "engine": first,
        "other_engines": {engine: _ratios(workload, engine, runs, curves) for engine in others},
        "seeds": [options.seed + number for number in range(options.rounds)],
        "pinned": options.pinned,
        "steps": workload.recipe.run.steps,
        "held_out": {
            "problems": workload.problems,
            "samples": workload.samples,
            "target": workload.target,
            "from_step": options.evaluate_from,
            "rounds_that_reached_it": {
                side: sum(seconds_to(workload.target, curve) is not None for curve in curves[side]) for side in runs
            },
        },
        "alone": {
            **{stage: [asdict(found) for found in each] for stage, each in alone.items()},
            "shares": _shares(runs[first], alone),
        },
        "sides": {
            side: [
                {
                    "seconds": run.seconds,
                    **run.rates(),
                    "seconds_to_accuracy": {f"{a:g}": seconds_to(a, curve) for a in workload.targets},
                    "curve": [[point.step, round(point.seconds, 2), round(point.accuracy, 4)] for point in curve],
                    "where": run.where,
                }
                for run, curve in zip(runs[side], curves[side], strict=True)
            ]
            for side in runs
        },
    }


def _ratios(
    workload: Workload,
    engine: str,
    runs: Mapping[str, Sequence[Training]],
    curves: Mapping[str, Sequence[Sequence[Point]]],
) -> dict[str, Any]:
    """Ours over theirs, paired by round; see docs/benchmarks.md for which of them should be high."""
    over_trl = {
        name: paired([run.rates()[name] for run in runs[engine]], [run.rates()[name] for run in runs[TRL]])
        for name in _OVER_TRL
    }
    for accuracy in workload.targets:
        over_trl[f"seconds_to_{accuracy:g}"] = paired(
            *([seconds_to(accuracy, curve) for curve in curves[side]] for side in (engine, TRL))
        )
    rates = [[run.rates() for run in runs[side]] for side in (engine, SYNCHRONOUS)]
    over_synchronous = {
        name: paired(*([run[name] for run in side] for side in rates))
        for name in ("trained_rollouts_per_second", "cpu_seconds_per_trained_rollout")
    }
    medians = {name: spread and spread["median"] for name, spread in over_trl.items()}
    return {
        "ratio_to_trl": {
            **{name: medians[name] for name in _OVER_TRL},
            "seconds_to_accuracy": medians[f"seconds_to_{workload.target:g}"],
        },
        # The synchronous run has the first engine: that of another is compared with it too.
        "ratio_to_synchronous": (over_synchronous["trained_rollouts_per_second"] or {}).get("median"),
        "spread": {"to_trl": over_trl, "to_synchronous": over_synchronous},
    }


def _shares(pipeline: Sequence[Training], alone: Mapping[str, Sequence[stages.Alone]]) -> list[float]:
    """The pipeline's trained rollouts a second over those of its slowest stage alone, in each round that has both.

    Generation alone samples what the pipeline would drop as well, so of its rollouts the share counts that the pipeline
    trained on.
    """
    shares = []
    for run, generation, learner in zip(pipeline, alone["generation"], alone["learner"], strict=False):
        trained = run.trained_rollouts / run.rollouts
        slowest = min(generation.rollouts_per_second * trained, learner.rollouts_per_second)
        shares.append(run.trained_rollouts / run.seconds / slowest)
    return shares


def _median(values: Sequence[float]) -> float | None:
    return Spread.of(values).median if values else None


def _train(workload: Workload, side: str, folder: Path, options: Options) -> Training:
    run = workload.recipe.run
    if side == TRL:
        problems = workload.train(run.steps * run.groups_per_step)
        job = trl.Job(
            workload.recipe,
            problems,
            run.steps,
            workload.save_every,
            options.threads,
            messages=_chats(workload, problems),
            micro_batch=workload.trl_micro_batch,
        )
        return trl.train(job, folder)
    settings = dict(workload.settings)
    settings["generation.engine"] = options.engines[0] if side == SYNCHRONOUS else side
    if side == SYNCHRONOUS:
        settings["run.max_staleness"] = 0
    return ours.train(
        workload.recipe_file, settings, folder / "run", save_every=workload.save_every, pinned=options.pinned
    )


def _chats(workload: Workload, problems: Sequence[Problem]) -> list[list[dict[str, str]]]:
    """The conversations that our token ids are of, where the recipe renders prompts by a chat template; else none.

    Raises:
        InvalidInputError: the template makes other ids of them, as where the recipe has a message of the system.
    """
    if not any(problem.token_ids for problem in problems):
        return []
    chats = [[{"role": "user", "content": problem.prompt}] for problem in problems]
    tokenizer = load_tokenizer(workload.recipe.run.model_folder())
    rendered = tokenizer.apply_chat_template(chats, add_generation_prompt=True, tokenize=True)["input_ids"]
    for problem, ids in zip(problems, rendered, strict=True):
        if list(problem.token_ids) != list(ids):
            raise InvalidInputError(f"TRL would read another prompt than ours of {problem.prompt!r}: {ids}")
    return chats


def _curve(workload: Workload, trained: Training, options: Options) -> list[Point]:
    (main, *_) = workload.origin.held_out()
    points = held_out.curve(
        workload.recipe.run.model_folder(),
        [saved for saved in trained.saved if saved.step >= options.evaluate_from],
        main.problems[: workload.problems],
        workload.is_correct,
        samples=workload.samples,
        max_tokens=workload.recipe.rollout.max_tokens,
        threads=options.threads,
        until=max(workload.targets),
    )
    _say("    held-out accuracy: " + ", ".join(f"{p.accuracy:.3f} after {p.seconds:.0f} s" for p in points))
    return points


def _alone(workload: Workload, options: Options, folder: Path) -> dict[str, stages.Alone]:
    run = workload.recipe.run
    steps = max(2, min(workload.stage_steps, run.steps))  # the clock of the learner starts after the first
    work = stages.Work(
        workload.recipe_file,
        workload.recipe,
        {**workload.settings, "generation.engine": options.engines[0]},
        workload.train(steps * run.groups_per_step + 2 * run.tickets),
    )
    sampled, groups = stages.generation(work, folder / "generation")
    trained = stages.learner(work, groups, workload.judge, folder / "learner", steps)
    return {"generation": sampled, "learner": trained}


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
