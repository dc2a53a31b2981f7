"""`routershift serve learner` as a process that a test kills, starts again and starves of space."""

import json
import os
import signal
import sys
import time
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_FSIZE, prlimit
from subprocess import DEVNULL, Popen
from typing import Any

import pytest
from safetensors.numpy import load_file

from services.learner.checkpointing import checkpoint
from shared.tracking import records
from tests.support.entries import SAMPLES
from tests.support.learning import GROUPS

STEPS, EVERY = 12, 4  # of the runs of real processes, and steps between their checkpoints


class Process:
    """`routershift serve learner` with settings that give every part of its state something to do."""

    def __init__(self, request: pytest.FixtureRequest, redis_url: str, folder: Path, model: Path, run_id: str) -> None:
        self.folder = folder / run_id
        self._process: Popen[bytes] | None = None
        request.addfinalizer(self._kill)
        settings = {
            "run.id": run_id,
            "run.folder": folder,
            "run.model": model,
            "run.steps": STEPS,
            "run.groups_per_step": GROUPS,
            "rollout.n": SAMPLES,
            "run.max_staleness": STEPS,
            "redis.url": redis_url,
            "streams.block_seconds": 0.05,
            "streams.max_deliveries": 100,
            "learner.port": 0,
            "learner.metrics_port": 0,
            "learner.optimizer.learning_rate": 1e-3,
            "learner.optimizer.schedule": "linear",
            "learner.router_shift.mismatch_baseline": "subtract",
            "learner.checkpoints.every": EVERY,
            "learner.checkpoints.keep": STEPS,
            "learner.checkpoints.keep_weights": STEPS,
        }
        flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        self._command = [sys.executable, "-m", "services.cli.main", "serve", "learner", *flags]

    def start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        self._process = Popen(self._command, env=environment, stdout=DEVNULL, stderr=DEVNULL)

    def _kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait(30)

    def end(self, how: signal.Signals) -> int:
        assert self._process is not None
        self._process.send_signal(how)
        return self._process.wait(30)

    def limit_files(self, size: int) -> None:
        """Larger files cannot be written, as on a disk that is full: EFBIG in place of ENOSPC."""
        assert self._process is not None
        prlimit(self._process.pid, RLIMIT_FSIZE, (size, RLIM_INFINITY))

    @property
    def log(self) -> str:
        return (self.folder / "logs/learner.jsonl").read_text()

    def steps(self) -> list[int]:
        return [record["step"] for record in records.read(self.folder / records.LEARNER)]

    def wait_for(self, lines: int) -> None:
        """Until so many steps were recorded, over all restarts."""
        assert self._process is not None
        deadline = time.monotonic() + 120
        while len(self.steps()) < lines:
            assert self._process.poll() is None, self.log[-2000:]
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def state(self) -> dict[str, Any]:
        """Every tensor, and all that a checkpoint or a list says beside, but for the time that training took.

        Safetensors headers have no order.
        """
        found: dict[str, Any] = {}
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if path.suffix == ".safetensors":
                found |= {f"{name} {tensor}": array.tobytes() for tensor, array in load_file(path).items()}
            elif name.startswith("checkpoints/") and path.suffix == ".json" and path.name != checkpoint.MANIFEST:
                found[name] = json.loads(path.read_text())
                if path.name == checkpoint.STATE:
                    del found[name]["meta"]["spent"]["seconds"]
        return found
