"""The same work by TRL's GRPOTrainer, in an environment of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.cli.recipe import Recipe
from services.curriculum.problems import Problem
from shared.errors import UnavailableError
from tests.bench.training.figures import Saved, Training
from tests.bench.training.ours import REPOSITORY
from tests.support import trl


@dataclass(frozen=True, slots=True)
class Job:
    """What of a recipe TRL is told. All else is TRL's default, but for `beta` 0 and no gradient checkpointing."""

    recipe: Recipe
    problems: Sequence[Problem]  # in the order in which they are trained on
    steps: int
    save_every: int
    threads: int
    lengths: Sequence[int] = ()  # of the responses to each problem; empty: as the model ends them
    messages: Sequence[Sequence[Mapping[str, str]]] = ()  # chats of the problems; empty: their prompts as they are
    micro_batch: int = 0  # rollouts of one forward and backward pass; 0: all of a step


def train(job: Job, folder: Path) -> Training:
    """Trains with GRPOTrainer in a process of its own.

    Raises:
        UnavailableError: there is no environment and it cannot be made, or TRL failed; says its last line.
    """
    python = trl.python()
    folder.mkdir(parents=True)
    (folder / "job.json").write_text(json.dumps(_as_json(job, folder)))
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "proto")]),
        "OMP_NUM_THREADS": str(job.threads),
        # Threads that spin at every barrier make TRL ten times slower where something else runs.
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [str(python), "-m", "tests.bench.training.trl_script", "job.json", "result.json"]
    with (folder / "log").open("w") as log:
        done = subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=False)
    if done.returncode:
        said = (folder / "log").read_text(errors="replace").strip().splitlines()
        sys.stderr.write("".join(f"    {line}\n" for line in said[-20:]))
        raise UnavailableError(f"TRL ended with code {done.returncode}: {(said or ['it said nothing'])[-1]}")
    result = json.loads((folder / "result.json").read_text())
    last = result["steps"][-1]
    sys.stderr.write(f"    {result['rollouts']} rollouts in {last['seconds']:.1f} s\n")
    return Training(
        seconds=last["seconds"],
        rollouts=result["rollouts"],
        trained_rollouts=result["trained"],
        tokens=result["tokens"],
        cpu_seconds=last["cpu_seconds"],
        saved=[
            Saved(step["step"], step["seconds"], tuple(map(Path, step["files"])))
            for step in result["steps"]
            if step["files"]
        ],
        where={"generate_seconds": result["generate_seconds"]} if job.lengths else {},
    )


def _as_json(job: Job, folder: Path) -> dict[str, Any]:
    recipe, optimizer = job.recipe, job.recipe.learner.optimizer
    run, rollout = recipe.run, recipe.rollout
    (verifier,) = {problem.verifier for problem in job.problems}
    chats = job.messages or [()] * len(job.problems)
    return {
        "folder": str(folder),
        "model": str(run.model_folder()),
        "problems": [
            {"prompt": problem.prompt, "reference": dict(problem.reference), "messages": list(chat)}
            for problem, chat in zip(job.problems, chats, strict=True)
        ],
        "verifiers": {
            name: json.loads(json.dumps(table, default=str)) for name, table in recipe.reward.verifiers.items()
        },
        "verifier": verifier,
        "lengths": list(job.lengths),
        "steps": job.steps,
        "save_every": job.save_every,
        "groups": run.groups_per_step,
        "samples": rollout.n,
        "max_tokens": rollout.max_tokens,
        "temperature": rollout.temperature,
        "micro_batch": job.micro_batch or run.groups_per_step * rollout.n,
        "learning_rate": optimizer.learning_rate,
        "warmup_steps": optimizer.warmup_steps,
        "beta1": optimizer.beta1,
        "beta2": optimizer.beta2,
        "weight_decay": optimizer.weight_decay,
        "max_grad_norm": optimizer.max_grad_norm,
        "bfloat16": recipe.learner.precision == "bfloat16",
        "threads": job.threads,
        "seed": run.seed,
    }
