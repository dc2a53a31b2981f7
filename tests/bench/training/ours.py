"""A recipe trained by `routershift run`, watched from outside."""

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from services.cli.endpoints import Endpoints
from services.cli.recipe import Recipe
from shared.errors import UnavailableError
from shared.recipes import load
from shared.settings import SERVICES
from shared.tracking import records
from shared.weights.published import folder_name
from tests.bench.training import processes
from tests.bench.training.figures import Saved, Training

REPOSITORY = Path(__file__).parents[3]
FREE_PORTS = {f"{service}.{port}": 0 for service in SERVICES for port in ("port", "metrics_port")}
_ALL_SERVE = ": logs, metrics and weights in "  # what `run` says then
_LOOK_SECONDS = 0.1
_STOP_SECONDS = 60.0
_TOKENS = 'routershift_generation_tokens_total{kind="response"}'
_DECIDED = "routershift_generation_groups_decided_total"
_OUTCOMES = ("stopped", "equal", "mixed")
# Where the time goes, by metrics that services count up.
_SECONDS = {
    "curriculum waits for tickets": 'routershift_curriculum_wait_seconds_total{reason="tickets"}',
    "generation pauses for weights": "routershift_generation_weights_pause_seconds_sum",
    "generation takes weights": "routershift_generation_weights_update_seconds_sum",
    "reward verifies": 'routershift_reward_verification_seconds_sum{verifier="',
    **{
        f"learner: {phase}": f'routershift_learner_phase_seconds_total{{phase="{phase}"}}'
        for phase in ("wait", "train", "publish", "checkpoint")
    },
}


@dataclass(frozen=True, slots=True)
class _Moment:
    """What was counted when."""

    at: datetime
    cpu: Mapping[int, processes.Spent]  # by process
    metrics: Mapping[str, float]


def train(
    recipe: Path, settings: Mapping[str, object], folder: Path, *, save_every: int, pinned: bool = False
) -> Training:
    """Trains to the end of the recipe, without evaluation: what that would measure is measured from the saved weights.

    The clock runs from the first prompt to the last step. Rollouts that are under way at its end do not count.

    Args:
        folder: of the run, which must not exist yet.
        save_every: steps between the weights that are given back.
        pinned: the learner gets the first core to itself, and all other processes the rest.

    Raises:
        UnavailableError: the run failed; its last lines are on stderr.
    """
    run = {
        "run.evaluate_every": 0,
        # Evaluating the start lasts until the learner serves as well: no prompt is admitted before.
        "curriculum.evaluation.sampling.n": 2,
        "curriculum.evaluation.sampling.greedy": "false",
        **place(folder),
        **settings,
    }
    last = load(Recipe, recipe, {}, [f"{name}={value}" for name, value in run.items()]).run.steps
    with running(recipe, run, folder) as process:
        _wait(process, folder, lambda: _ALL_SERVE in _log(folder).read_text(errors="replace"))
        served = datetime.now(UTC)
        evaluations, steps = records.Tail(folder / records.EVALUATIONS), records.Tail(folder / records.LEARNER)
        _wait(process, folder, lambda: bool(evaluations.read()))
        if pinned:
            first, *rest = sorted(os.sched_getaffinity(0))
            processes.pin(process.pid, "learner", first, rest)
        evaluated = datetime.fromisoformat(records.read(folder / records.EVALUATIONS)[0]["time"])
        if evaluated < served:
            sys.stderr.write(f"    prompts came {(served - evaluated).total_seconds():.1f} s before all services did\n")
        begin = _moment(process.pid, folder, max(served, evaluated))
        taken: list[dict[str, Any]] = []
        saved: list[Saved] = []

        def is_done() -> bool:
            taken.extend(new := steps.read())
            for record in new:
                if record["step"] % save_every == 0:
                    saved.append(_save(folder, record, begin.at))
                if record["step"] % 10 == 0:
                    sys.stderr.write(f"    step {record['step']}: reward {record['reward_mean']:.3f}\n")
            return bool(taken) and taken[-1]["step"] >= last

        _wait(process, folder, is_done)
        end = _moment(process.pid, folder, datetime.fromisoformat(taken[-1]["time"]))
        if process.wait():
            raise failed(process, folder)
    return _training(taken, saved, begin, end)


def place(folder: Path) -> dict[str, object]:
    """Settings of a run that has this folder, and ports that nobody else has."""
    return {"run.folder": folder.parent, "run.id": folder.name, **FREE_PORTS}


def _save(folder: Path, record: Mapping[str, Any], began: datetime) -> Saved:
    """Hard links to the weights of a step, which the learner removes when there are newer ones."""
    published = folder / records.WEIGHTS / folder_name(record["step"])
    kept = folder / "saved" / published.name
    kept.mkdir(parents=True)
    for path in published.glob("*.safetensors"):
        (kept / path.name).hardlink_to(path)
    seconds = (datetime.fromisoformat(record["time"]) - began).total_seconds()
    return Saved(record["step"], seconds, tuple(sorted(kept.iterdir())))


def _training(taken: list[dict[str, Any]], saved: list[Saved], begin: _Moment, end: _Moment) -> Training:
    seconds = (end.at - begin.at).total_seconds()
    trained = sum(record["trajectories"] for record in taken)
    dropped = taken[-1]["dropped"]
    cpu = processes.between(begin.cpu, end.cpu)

    def counted(name: str) -> float:
        """All series that begin so."""
        return sum(
            value - begin.metrics.get(series, 0.0) for series, value in end.metrics.items() if series.startswith(name)
        )

    return Training(
        seconds=seconds,
        rollouts=trained + sum(dropped.values()),
        trained_rollouts=trained,
        tokens=round(counted(_TOKENS)),
        cpu_seconds=sum(cpu.values()),
        saved=saved,
        where={
            "cpu_seconds_per_second": {service: spent / seconds for service, spent in cpu.items()},
            "share_of_time": {what: counted(name) / seconds for what, name in _SECONDS.items()},
            "groups_decided": {outcome: counted(f'{_DECIDED}{{outcome="{outcome}"') for outcome in _OUTCOMES},
            "dropped_share": {reason: n / max(trained + sum(dropped.values()), 1) for reason, n in dropped.items()},
            "seconds_per_step_by_quarter": _quarters(taken),
        },
    )


def _quarters(taken: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The mean seconds of a step by phase, in each quarter of the run: what grows while it learns is seen here."""
    size = max(len(taken) // 4, 1)
    parts = [taken[i : i + size] for i in range(0, size * min(4, len(taken)), size)]
    phases = taken[-1]["seconds"]
    return {
        phase: [sum(record["seconds"].get(phase, 0.0) for record in part) / len(part) for part in parts]
        for phase in phases
    }


@contextlib.contextmanager
def running(recipe: Path, settings: Mapping[str, object], folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """`routershift run` with these settings, whose output goes to a file beside the folder; stopped at the end."""
    flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _log(folder).open("wb") as log:
        command = [sys.executable, "-m", "services.cli.main", "run", str(recipe), *flags]
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            yield process
        finally:
            process.terminate()  # it stops its services
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: "subprocess.Popen[bytes]", folder: Path, is_done: Any) -> None:
    """The run has deadlines of its own for all that may stand still."""
    while not is_done():
        if process.poll() is not None:
            raise failed(process, folder)
        time.sleep(_LOOK_SECONDS)


def failed(process: "subprocess.Popen[bytes]", folder: Path) -> UnavailableError:
    """The error of a run that has failed; its last lines are written to stderr."""
    said = _log(folder).read_text(errors="replace").strip().splitlines() or ["it said nothing"]
    sys.stderr.write("".join(f"    {line}\n" for line in said[-20:]))
    return UnavailableError(f"routershift run ended with code {process.returncode}: {said[-1]}")


def _log(folder: Path) -> Path:
    return folder.with_suffix(".log")


def _moment(pid: int, folder: Path, at: datetime) -> _Moment:
    return _Moment(at, processes.spent_by_process(pid), _metrics(folder))


def _metrics(folder: Path) -> dict[str, float]:
    """All series of all services, without the label `run`; of a service that does not answer, as it ends, none."""
    found = {}
    for service in Endpoints.read(folder).services.values():
        with contextlib.suppress(OSError), urllib.request.urlopen(service.metrics, timeout=5) as answer:  # noqa: S310
            for family in text_string_to_metric_families(answer.read().decode()):
                for sample in family.samples:
                    labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items() if name != "run")
                    found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found
