"""`routershift run`: a recipe from start to finish, with progress, a report and one line of JSON."""

import asyncio
import contextlib
import math
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr

from services.cli.commands import report
from services.cli.local.services import Services, services
from shared.errors import DeadlineError, UnavailableError
from shared.streams.connection import connect
from shared.streams.progress import Progress
from shared.streams.run import FINISHED, PAUSED, Ledger, Run
from shared.tracking import records

_STALL_SECONDS = 180.0
_DRAIN_SECONDS = 60.0
_LOOK_SECONDS = 0.5


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


async def run_recipe(recipe_file: Path, flags: Sequence[str], log_level: str) -> dict[str, Any]:
    """Trains to the end and gives the summary. Everything that was started is stopped, however it ends.

    Raises:
        DeadlineError: no step for three minutes.
        ServiceEndedError: a service that no restart helps.
        RouterShiftError: whatever else stopped it.
    """
    began = time.monotonic()
    memory = _Memory()
    watching = asyncio.create_task(memory.watch())
    try:
        _say("starting services")
        async with services(recipe_file, flags, log_level) as running:
            _say(f"run {running.recipe.run.id}: logs, metrics and weights in {running.recipe.run.path}")
            ledger = await _follow(running)
        summary = _summary(running, ledger, time.monotonic() - began)
    finally:
        watching.cancel()
    folder = running.recipe.run.path
    evaluations = records.read(folder / records.EVALUATIONS)
    best = report.best(folder, evaluations)
    details = {
        **summary,
        "greedy_accuracy_before": round(evaluations[0]["greedy_accuracy"], 4),
        "greedy_accuracy_after": round(evaluations[-1]["greedy_accuracy"], 4),
        "pass_at_k_after": {k: round(share, 4) for k, share in evaluations[-1]["pass_at_k"].items()},
        "best": best,
        "seed": running.recipe.run.seed,
        "restarts": dict(running.restarts),
        "peak_memory_bytes": memory.peak,
    }
    (folder / "summary.json").write_text(records.dumps(details, indent=2) + "\n", encoding="utf-8")
    plot, page = report.write(folder)
    _say(f"peak memory of all processes: {memory.peak / 2**30:.2f} GiB")
    _say(f"checkpoint: {folder / 'checkpoints'}")
    _say(f"weights:    {folder / 'weights'}")
    _say(f"best:       version {best['version']}, held-out accuracy {best['accuracy']:.3f}")
    for kind in ("checkpoint", "weights"):
        if best[kind]:
            _say(f"            {best[kind]}")
    _say(f"metrics:    {folder / records.LEARNER}, {folder / records.EVALUATIONS}")
    _say(f"plot:       {plot}")
    _say(f"report:     {page}")
    return summary


async def _follow(running: Services) -> Ledger:
    """Shows progress until the learner has finished, the last evaluation is in and nothing is in flight.

    Raises:
        ServiceEndedError: a service was given up.
        DeadlineError: no step for three minutes, whatever was restarted meanwhile.
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


async def _to_the_end(running: Services) -> Ledger:
    recipe = running.recipe
    shown = _Shown(recipe.run.path, recipe.run.steps)
    redis = await connect(running.recipe.redis.model_copy(update={"url": SecretStr(running.redis_url)}))
    try:
        run = Run(redis, recipe.run.id, recipe.streams)
        while True:
            # A Redis that is being restarted is no news; without steps, the deadline passes.
            progress = Progress()
            with contextlib.suppress(UnavailableError):
                progress = await run.progress()
            shown.update(progress.phase)
            if progress.phase == FINISHED and progress.final_evaluation == progress.version:
                return await _drained(run)
            if shown.idle_seconds > _STALL_SECONDS:
                raise DeadlineError(f"no step within {_STALL_SECONDS} s; see {recipe.run.path / 'logs'}")
            await asyncio.sleep(_LOOK_SECONDS)
    finally:
        await redis.aclose()


async def _drained(run: Run) -> Ledger:
    """The ledger once nothing is in flight: what the learner did not need has been dropped, and counted."""
    ledger = None
    deadline = time.monotonic() + _DRAIN_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(UnavailableError):
            ledger = await run.ledger()
        if ledger is not None and not ledger.in_flight:
            return ledger
        await asyncio.sleep(_LOOK_SECONDS)
    left = "an unknown number of" if ledger is None else ledger.in_flight
    raise DeadlineError(f"{left} trajectories still in flight {_DRAIN_SECONDS} s after the end")


class _Shown:
    """Says what is new in the records since the last look."""

    def __init__(self, folder: Path, steps: int) -> None:
        self._steps = steps
        self._learner = records.Tail(folder / records.LEARNER)
        self._evaluations = records.Tail(folder / records.EVALUATIONS)
        self._changed = time.monotonic()
        self._phase: str | None = None

    @property
    def idle_seconds(self) -> float:
        return time.monotonic() - self._changed

    def update(self, phase: str | None) -> None:
        steps, evaluations = self._learner.read(), self._evaluations.read()
        if steps or evaluations or phase == PAUSED:
            self._changed = time.monotonic()
        if phase == PAUSED != self._phase:
            _say("the learner is paused, and goes on when LearnerService.Resume is called")
        self._phase = phase
        for record in evaluations:
            shares = {"greedy": record["greedy_accuracy"]} | {f"pass@{k}": p for k, p in record["pass_at_k"].items()}
            _say(
                f"version {record['version']:>4}: held-out accuracy {record['accuracy']:.3f} "
                f"({', '.join(f'{name} {share:.3f}' for name, share in shares.items())}) "
                f"on {record['problems']} problems x {record['samples'] // record['problems']}"
            )
        for record in steps:
            if record["step"] % 10 == 0 or record["step"] in (1, self._steps):
                _say(
                    f"step {record['step']:>4}/{self._steps}: reward {_finite(record['reward_mean']):.3f}, "
                    f"staleness {record['staleness_max']}, gamma {_finite(record.get('gamma_mean', 1.0)):.4f}"
                )


def _finite(value: float | None) -> float:
    """A number of a record, where null stands for what is not finite."""
    return math.nan if value is None else value


def _summary(running: Services, ledger: Ledger, seconds: float) -> dict[str, Any]:
    """The demo's line: every value comes from the ledger or from the run's records."""
    recipe = running.recipe
    steps = records.steps(recipe.run.path / records.LEARNER)
    evaluations = records.read(recipe.run.path / records.EVALUATIONS)
    if not steps or len(evaluations) < 2:
        raise UnavailableError(f"the run has no step or too few evaluations; see {recipe.run.path / 'logs'}")
    # Feeding begins when the first evaluation is in.
    training = datetime.fromisoformat(steps[-1]["time"]) - datetime.fromisoformat(evaluations[0]["time"])
    ended = ledger.trained + sum(ledger.dropped.values())
    return {
        "task": recipe.run.task,
        "engine": recipe.generation.engine,
        "algorithm": recipe.learner.algorithm,
        "steps": steps[-1]["step"],
        "accuracy_before": round(evaluations[0]["accuracy"], 4),
        "accuracy_after": round(evaluations[-1]["accuracy"], 4),
        "trajectories_trained": ledger.trained,
        "trajectories_dropped": {**ledger.dropped, **{f"dead:{reason}": n for reason, n in ledger.dead.items()}},
        "max_staleness_seen": max(record["staleness_max"] for record in steps),
        "rollouts_per_second": round(ended / training.total_seconds(), 1),
        "seconds": round(seconds, 1),
    }


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stderr.flush()
