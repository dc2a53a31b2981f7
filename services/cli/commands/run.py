"""A recipe from start to finish: progress, a report and one line of JSON."""

import argparse
import asyncio
import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr

from services.cli.arguments import add_log_level, add_settings
from services.cli.evaluations import best as best_of
from services.cli.evaluations import by_set, of_main_set, takes_turns, versions_in_words
from services.cli.local.services import Services, services
from services.cli.monitor import Monitor
from services.cli.pages import report
from services.cli.progress_line import progress_line, say
from services.cli.recipe import Recipe
from services.cli.signals import interruptible
from shared import sizes
from shared.errors import DeadlineError, RouterShiftError, UnavailableError
from shared.process.exits import EXIT_BAD_INPUT, EXIT_OK
from shared.recipes import load
from shared.streams.account import Ledger
from shared.streams.connection import connect
from shared.streams.run import FINISHED, Run
from shared.tracking import records

_LOOK_SECONDS = 0.5
# A dry run downloads nothing: what the cache of the Hub lacks is a note of its plan.
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class _Followed:
    """The run since this start: a resumed one had begun before."""

    started: datetime  # when all services served, UTC
    before: Ledger  # then
    after: Ledger  # at the end
    end: str  # why the learner has finished, in words


class _Memory:
    """The peak of the resident memory of us and all our descendants, in bytes; shared pages count each time."""

    def __init__(self) -> None:
        self.peak = 0

    async def watch(self) -> None:
        me = psutil.Process()
        while True:
            total = 0
            for process in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    total += process.memory_info().rss
            self.peak = max(self.peak, total)
            await asyncio.sleep(1.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="settings file (TOML)")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the plan and what to mend, and start nothing; exit code 2 or 0"
    )
    add_settings(parser)
    add_log_level(parser, "WARNING")


def run(arguments: argparse.Namespace) -> int:
    if arguments.dry_run:
        return _dry_run(arguments.recipe, arguments.flags)
    summary: dict[str, Any] = {}

    async def to_the_end() -> None:
        summary.update(await run_recipe(arguments.recipe, arguments.flags, arguments.log_level))

    code = interruptible(to_the_end())
    if code == EXIT_OK:
        print(records.dumps(summary))
    return code


def _dry_run(recipe_file: Path, flags: Sequence[str]) -> int:
    """EXIT_BAD_INPUT where something must be mended."""
    os.environ |= OFFLINE  # before huggingface_hub is imported, which reads it once
    from services.cli.dry_run.plan import plan

    lines = plan(load(Recipe, recipe_file, os.environ, flags))
    for line in lines:
        print(f"{line.kind:<4} {line.about:<9} {line.text}")
    faults = sum(line.kind == "MEND" for line in lines)
    print(f"{faults} to mend" if faults else "nothing to mend: without --dry-run, this is what runs")
    return EXIT_BAD_INPUT if faults else EXIT_OK


async def run_recipe(recipe_file: Path, flags: Sequence[str], log_level: str) -> dict[str, Any]:
    """Trains to the end and gives the summary. Everything that was started is stopped, however it ends.

    Raises:
        DeadlineError: no progress for `supervisor.progress_seconds`, or a step of more than `supervisor.step_seconds`.
        ServiceEndedError: a service that no restart helps.
        RouterShiftError: whatever else stopped it.
    """
    began = time.monotonic()
    memory = _Memory()
    watching = asyncio.create_task(memory.watch())
    try:
        async with services(recipe_file, flags, log_level, "run") as running:
            say(f"run {running.recipe.run.id}: logs, metrics and weights in {running.recipe.run.path}")
            followed = await _follow(running)
        summary = _summary(running, followed, time.monotonic() - began)
    finally:
        watching.cancel()
    folder = running.recipe.run.path
    evaluations = records.read(folder / records.EVALUATIONS)
    main, best = of_main_set(evaluations), best_of(folder, evaluations)
    details = {
        **summary,
        "greedy_accuracy_before": _rounded(main[0]["greedy_accuracy"]),
        "greedy_accuracy_after": _rounded(main[-1]["greedy_accuracy"]),
        "pass_at_k_after": {k: round(share, 4) for k, share in main[-1]["pass_at_k"].items()},
        "best": best,
        "end": followed.end,
        "seed": running.recipe.run.seed,
        "restarts": dict(running.restarts),
        "peak_memory_bytes": memory.peak,
    }
    page = _leave(folder, details)
    say(f"ended:      {followed.end}")
    say(f"peak memory of all processes: {sizes.in_words(memory.peak)}")
    say(f"checkpoint: {folder / records.CHECKPOINTS}")
    say(f"weights:    {folder / records.WEIGHTS}")
    sampled_by = f", {best['sampled_by']}" if "sampled_by" in best else ""
    say(f"best:       version {best['version']}, held-out accuracy {best['accuracy']:.3f}{sampled_by}")
    for kind in ("checkpoint", "weights"):
        if best[kind]:
            say(f"            {best[kind]}")
    say(f"metrics:    {folder / records.LEARNER}, {folder / records.EVALUATIONS}")
    say(f"report:     {page}")
    return summary


def _turns(main: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Turns of the model in an episode, before and after; nothing where each response is one."""
    if not takes_turns(main):
        return {}
    return {"turns_before": round(main[0]["mean_turns"], 2), "turns_after": round(main[-1]["mean_turns"], 2)}


def _leave(folder: Path, summary: Mapping[str, Any]) -> str:
    """Writes summary.json and the report into the folder; says where, or why not: the run has ended in any case."""
    try:
        (folder / records.SUMMARY).write_text(records.dumps(summary, indent=2) + "\n", encoding="utf-8")
        return str(report.write(folder))
    except (OSError, RouterShiftError) as error:
        return f"none: {error}; `routershift report {folder}` makes it later"


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 4)


async def _follow(running: Services) -> _Followed:
    """Shows progress until the learner has finished, the last evaluation is in and nothing is in flight.

    Raises:
        ServiceEndedError: a service was given up.
        DeadlineError: nothing moved for too long, whatever was restarted meanwhile.
    """
    ended = asyncio.create_task(running.ended())
    following = asyncio.create_task(_to_the_end(running))
    try:
        await asyncio.wait({ended, following}, return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            raise ended.result()
        return await following
    finally:
        for task in (ended, following):
            task.cancel()
        await asyncio.gather(ended, following, return_exceptions=True)


async def _to_the_end(running: Services) -> _Followed:
    with progress_line() as show:
        return await _watched(running, Monitor(running.recipe, running.started, show))


async def _watched(running: Services, monitor: Monitor) -> _Followed:
    recipe = running.recipe
    redis = await connect(recipe.redis.model_copy(update={"url": SecretStr(running.redis_url)}))
    try:
        run = Run(redis, recipe.run.id, recipe.streams)
        started, before = datetime.now(UTC), await run.ledger()
        while True:
            progress = await monitor.update(run)
            if progress.phase == FINISHED and progress.final_evaluation == progress.version:
                after = await _drained(run, recipe.supervisor.drain_seconds)
                return _Followed(started, before, after, progress.end or "")
            await asyncio.sleep(_LOOK_SECONDS)
    finally:
        await redis.aclose()


async def _drained(run: Run, patience_seconds: float) -> Ledger:
    """The ledger once nothing is in flight: what the learner did not need has been dropped, and counted."""
    ledger = None
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(UnavailableError):
            ledger = await run.ledger()
        if ledger is not None and not ledger.in_flight:
            return ledger
        await asyncio.sleep(_LOOK_SECONDS)
    left = "an unknown number of" if ledger is None else ledger.in_flight
    raise DeadlineError(
        f"{left} trajectories are still in flight {patience_seconds:g} s after the end; raise "
        "supervisor.drain_seconds if they only take long, else see the logs in the run's folder"
    )


def _summary(running: Services, followed: _Followed, seconds: float) -> dict[str, Any]:
    """The last line of a run: every value comes from the ledger or from the run's records.

    Counts are of the whole run; seconds, and rollouts per second, are of this start.
    """
    recipe, ledger = running.recipe, followed.after
    steps = records.steps(recipe.run.path / records.LEARNER)
    evaluations = records.read(recipe.run.path / records.EVALUATIONS)
    main = of_main_set(evaluations)
    others = {name: found for name, found in by_set(evaluations).items() if not found[0]["main"]}
    if not steps or len(main) < 2:
        raise UnavailableError(f"the run has no step or too few evaluations; see {recipe.run.path / 'logs'}")
    sampled_by = versions_in_words(main[-1])
    return {
        "task": recipe.run.task or ", ".join(source.label for source in recipe.data.train),
        "engine": recipe.generation.engine,
        "algorithm": recipe.learner.algorithm,
        "steps": steps[-1]["step"],
        "accuracy_before": round(main[0]["accuracy"], 4),
        "accuracy_after": round(main[-1]["accuracy"], 4),
        **({"accuracy_after_sampled_by": sampled_by} if sampled_by else {}),
        **_turns(main),
        **({"other_sets": {name: _change(found) for name, found in others.items()}} if others else {}),
        "trajectories_trained": ledger.trained,
        "trajectories_dropped": {**ledger.dropped, **{f"dead:{reason}": n for reason, n in ledger.dead.items()}},
        "max_staleness_seen": max(record["staleness_max"] for record in steps),
        "rollouts_per_second": rollouts_per_second(followed.started, followed.before, ledger, steps, evaluations),
        "seconds": round(seconds, 1),
    }


def _change(evaluations: Sequence[dict[str, Any]]) -> dict[str, float]:
    """How far one held-out set has come."""
    first, last = (round(evaluations[i]["accuracy"], 4) for i in (0, -1))
    return {"accuracy_before": first, "accuracy_after": last}


def rollouts_per_second(
    started: datetime,
    before: Ledger,
    after: Ledger,
    steps: Sequence[dict[str, Any]],
    evaluations: Sequence[dict[str, Any]],
) -> float | None:
    """Trajectories that came to their end between two moments of a run, by the time that training took of it.

    Args:
        started: the first of the moments: what the run did before, and a pause before it, do not count.
        before, after: the ledger at these moments.
        steps, evaluations: the records of the run.

    Returns:
        None where nothing was trained in this time.
    """
    # Feeding begins when the first evaluation of the run, on all of its sets, is in.
    first = [record for record in evaluations if record["version"] == evaluations[0]["version"]]
    began = max([started, *(datetime.fromisoformat(record["time"]) for record in first)])
    seconds = (datetime.fromisoformat(steps[-1]["time"]) - began).total_seconds()
    return round((_ended(after) - _ended(before)) / seconds, 1) if seconds > 0 else None


def _ended(ledger: Ledger) -> int:
    return ledger.trained + sum(ledger.dropped.values())
