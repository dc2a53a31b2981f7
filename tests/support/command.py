"""The command line as a user has it: real processes, and proof that none is left."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from services.cli.local.redis import PROGRAMS
from tests.support import processes

RECIPE = Path(__file__).parents[2] / "deploy/recipes/countdown.toml"


@dataclass(frozen=True)
class Invocation:
    """A started command and everything it started in turn."""

    process: subprocess.Popen[str]
    mark: str

    def finish(self, timeout: float) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    def alive(self) -> list[str]:
        """Command lines of what still runs."""
        found = []
        for process in processes.running(self.mark):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(" ".join(process.cmdline()) or process.name())
        return found

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends it to the process that serves, or follows, by this name, or to Redis, as soon as there is one."""
        titles = (f"routershift serve {name}", f"routershift follow {name}")
        deadline = time.monotonic() + 60.0
        while time.monotonic() < deadline:
            for process in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    title = " ".join(process.cmdline())
                    if title.startswith(titles) or (name == "redis" and any(program in title for program in PROGRAMS)):
                        process.send_signal(number)
                        return
            time.sleep(0.1)
        raise AssertionError(f"there is no {name} to signal")

    def nothing_left(self, within: float = 10.0) -> bool:
        deadline = time.monotonic() + within
        while self.alive() and time.monotonic() < deadline:
            time.sleep(0.1)
        return not self.alive()


Start = Callable[..., Invocation]


@contextlib.contextmanager
def starting(folder: Path) -> Iterator[Start]:
    """What starts `routershift ARGUMENTS` in a folder, without the settings of our own environment.

    What is left of the commands at the end is killed.
    """
    started: list[Invocation] = []

    def begin(*arguments: str, environment: dict[str, str] | None = None) -> Invocation:
        mark = uuid.uuid4().hex
        clean = {k: v for k, v in os.environ.items() if k != "REDIS_URL" and not k.startswith("ROUTERSHIFT_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli.main", *arguments],
            cwd=folder,
            env={**clean, **(environment or {}), **processes.marked(mark)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(Invocation(process, mark))
        return started[-1]

    try:
        yield begin
    finally:
        for invocation in started:
            processes.kill(invocation.mark)
            invocation.process.communicate()


def settings(**values: object) -> list[str]:
    """--set flags: `run__steps=3` for run.steps, on top of free ports and a run small enough for a test."""
    defaults: dict[str, object] = {
        "run__id": "test",
        "run__groups_per_step": 8,
        "curriculum__evaluation__problems": 24,
        "curriculum__evaluation__sampling__n": 1,
        "generation__engine": "torch",
    }
    ports = {
        f"{s}__{k}": 0 for s in ("curriculum", "generation", "reward", "learner") for k in ("port", "metrics_port")
    }
    merged = {**ports, **defaults, **values}
    return [part for name, value in merged.items() for part in ("--set", f"{name.replace('__', '.')}={value}")]
