"""Responses of very different lengths: the pipeline over generation alone, and over TRL's padded generate().

The model is the demo's without an end of sequence, so a response is as long as its prompt's `max_tokens`: a log-normal
length that follows from the prompt, the same for all responses of a group. The curriculum has one `max_tokens` for a
run, so the bench feeds the prompts of the pipeline itself. TRL has one for a run as well: there a logits processor
forbids the end before the length, and forces it then.
"""

import asyncio
import contextlib
import hashlib
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

from services.cli.recipe import Recipe
from services.curriculum.problems import Problem
from services.curriculum.tasks.countdown import Countdown
from shared.recipes import load
from shared.tracking import records
from tests.bench.training import stages, trl
from tests.bench.training.comparison import Options
from tests.bench.training.figures import paired
from tests.bench.training.judging import Judge
from tests.bench.training.ours import REPOSITORY

_RECIPE = Path(__file__).with_name("long_tail.toml")
_DEMO = REPOSITORY / "deploy" / "recipes" / "countdown" / "model"
_MEDIAN_SHARE, _SIGMA = 0.1, 1.0  # of the longest: with 2,048 a mean of about 320 tokens, 1 % of them at the limit
_SHORTEST = 4
_TRL_MICRO_BATCH = 8  # responses; all of a step, padded to 2,048 tokens, would take several GB
_LOOK_SECONDS = 0.02
_TURNS = ("pipeline", "stages", "trl")
_VERIFIER = "share"  # of long_tail.toml
_LEARNER_STEPS = 6  # of the learner alone


@dataclass(frozen=True, slots=True)
class Pipeline:
    """What generation, reward and learner made together."""

    tokens_per_second: float  # trained on
    rollouts_per_second: float
    cpu_seconds_per_token: dict[str, float]  # by service
    dropped_share: dict[str, float]  # of all rollouts, by reason
    mean_tokens: float


def measure(options: Options, settings: dict[str, object], trl_steps: int) -> dict[str, Any]:
    """Tokens a second of all three, in each round.

    Args:
        settings: on top of long_tail.toml.
        trl_steps: of TRL, each as long as its longest response.
    """
    pipelines: list[Pipeline] = []
    alone: dict[str, list[stages.Alone]] = {"generation": [], "learner": []}
    padded: list[dict[str, float]] = []
    for number in range(options.rounds):
        folder = options.folder / f"long_tail-{number}"
        folder.mkdir()
        own = {
            **settings,
            "run.seed": options.seed + number,
            "run.model": _endless(folder / "model"),
            "generation.engine": options.engines[0],
        }
        recipe = load(Recipe, _RECIPE, {}, [f"{name}={value}" for name, value in own.items()])
        per_step, steps = recipe.run.groups_per_step, recipe.run.steps
        for turn in _TURNS[:: 1 if number % 2 == 0 else -1]:
            name = f"long_tail, round {number + 1}/{options.rounds}, seed {options.seed + number}"
            sys.stderr.write(f"{name}: {turn}\n")
            if turn == "pipeline":  # it may drop some, and the last are under way at the end
                pipelines.append(_pipeline(_work(recipe, own, 2 * per_step * steps), folder / turn))
            elif turn == "stages":
                work = _work(recipe, own, per_step * steps)
                sampled, groups = stages.generation(work, folder / "generation")
                judge, few = Judge(recipe.reward.verifiers, _VERIFIER), max(2, min(steps, _LEARNER_STEPS))
                alone["generation"].append(sampled)
                alone["learner"].append(stages.learner(work, groups, judge, folder / "learner", few))
            else:
                padded.append(_padded(recipe, folder / turn, trl_steps, options.threads))
        shutil.rmtree(folder)
    return result(pipelines, alone, padded, [options.seed + number for number in range(options.rounds)])


def result(
    pipelines: Sequence[Pipeline],
    alone: Mapping[str, Sequence[stages.Alone]],
    padded: Sequence[dict[str, float]],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """What the workload shows: ratios first, then all that they were made of."""
    ours = [run.tokens_per_second for run in pipelines]
    generation, learner = ([run.tokens_per_second for run in alone[stage]] for stage in ("generation", "learner"))
    spread = {
        "slowest_stage_share": paired(ours, [min(stage) for stage in zip(generation, learner, strict=True)]),
        "ratio_to_generation_alone": paired(ours, generation),
        "tokens_per_second": paired(ours, [run["tokens_per_second"] for run in padded]),
        "generate_tokens_per_second": paired(generation, [run["generate_tokens_per_second"] for run in padded]),
    }
    medians = {name: found and found["median"] for name, found in spread.items()}
    return {
        "ratio_to_trl": {name: medians[name] for name in ("tokens_per_second", "generate_tokens_per_second")},
        **{name: medians[name] for name in ("slowest_stage_share", "ratio_to_generation_alone")},
        "spread": spread,
        "seeds": list(seeds),
        "sides": {
            "pipeline": [asdict(run) for run in pipelines],
            **{f"{stage}_alone": [asdict(run) for run in each] for stage, each in alone.items()},
            "trl": list(padded),
        },
    }


def length(prompt: str, longest: int) -> int:
    """Log-normal, and the same whenever the prompt comes again."""
    number = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
    quantile = NormalDist().inv_cdf((number + 0.5) / 2**64)
    return max(_SHORTEST, min(longest, round(_MEDIAN_SHARE * longest * math.exp(_SIGMA * quantile))))


def _problems(recipe: Recipe, count: int) -> list[Problem]:
    task = Countdown(recipe.run.seed)
    return [Problem(task.train(i).prompt, {}, _VERIFIER) for i in range(count)]


def _lengths(recipe: Recipe, problems: Sequence[Problem]) -> list[int]:
    return [length(problem.prompt, recipe.rollout.max_tokens) for problem in problems]


def _work(recipe: Recipe, settings: dict[str, object], groups: int) -> stages.Work:
    """So many groups, and those that are in flight beside them."""
    problems = _problems(recipe, groups + recipe.run.tickets)
    return stages.Work(_RECIPE, recipe, settings, problems, _lengths(recipe, problems))


def _endless(folder: Path) -> Path:
    """The demo's model without an end of sequence, for long responses; its weights do not matter here."""
    shutil.copytree(_DEMO, folder)
    config = json.loads((folder / "config.json").read_text())
    changed = {"eos_token_id": config["vocab_size"], "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(config | changed))
    (folder / "generation_config.json").unlink()
    return folder


def _pipeline(work: stages.Work, folder: Path) -> Pipeline:
    """The clock runs from a third of the steps to the last: by then long responses are under way as well."""
    return asyncio.run(_fed(work, folder))


async def _fed(work: stages.Work, folder: Path) -> Pipeline:
    steps, run_settings = work.recipe.run.steps, work.recipe.run
    warmup, taken, admitted = max(steps // 3, 1), list[dict[str, Any]](), 0
    before: dict[str, float] = {}
    async with stages.opened(folder) as (run, url):
        with contextlib.ExitStack() as stack:
            processes = {
                name: stack.enter_context(stages.service(name, work, {}, folder, url))
                for name in ("generation", "reward", "learner")
            }
            tail = records.Tail(folder / stages.RUN / records.LEARNER)
            while len(taken) < steps:
                while await run.admit(admitted, work.prompt(admitted), run_settings.tickets) == "ok":
                    admitted += 1
                taken += tail.read()
                if not before and len(taken) >= warmup:
                    before = {name: stages.cpu_of(process) for name, process in processes.items()}
                for name, process in processes.items():
                    stages.must_live(process, folder, name)
                await asyncio.sleep(_LOOK_SECONDS)
            spent = {name: stages.cpu_of(process) - before[name] for name, process in processes.items()}
    first, last = (datetime.fromisoformat(taken[i]["time"]) for i in (warmup - 1, -1))
    seconds, counted = (last - first).total_seconds(), taken[warmup:]
    tokens, rollouts = (sum(record[name] for record in counted) for name in ("tokens", "trajectories"))
    dropped, trained = taken[-1]["dropped"], sum(record["trajectories"] for record in taken)
    return Pipeline(
        tokens_per_second=tokens / seconds,
        rollouts_per_second=rollouts / seconds,
        cpu_seconds_per_token={name: seconds / tokens for name, seconds in spent.items()},
        dropped_share={reason: n / (trained + sum(dropped.values())) for reason, n in dropped.items()},
        mean_tokens=tokens / rollouts,
    )


def _padded(recipe: Recipe, folder: Path, steps: int, threads: int) -> dict[str, float]:
    problems = _problems(recipe, steps * recipe.run.groups_per_step)
    lengths = _lengths(recipe, problems)
    job = trl.Job(recipe, problems, steps, steps + 1, threads, lengths, micro_batch=_TRL_MICRO_BATCH)
    trained = trl.train(job, folder)
    return {
        "tokens_per_second": trained.tokens / trained.seconds,
        "generate_tokens_per_second": trained.tokens / trained.where["generate_seconds"],
        "cpu_seconds_per_token": trained.cpu_seconds / trained.tokens,
        "mean_tokens": trained.tokens / trained.rollouts,
        "mean_longest_tokens": fmean(
            max(lengths[i : i + recipe.run.groups_per_step]) for i in range(0, len(lengths), recipe.run.groups_per_step)
        ),
    }
