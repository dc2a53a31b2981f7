"""Processes that use experiment trackers.

Their packages are not in the project's environment: some need older versions of what it pins. They lie before it on the
path of a child process, as in deploy/locks/trackers.txt.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import wheels

_ROOT = Path(__file__).parents[2]
_PROCESS_SECONDS = 120


def packages() -> Path:
    """The folder with all of them; skips the test, with the reason, where they cannot be downloaded."""
    return wheels.packages("trackers")


@dataclass(frozen=True)
class Trackers:
    """Runs what uses the packages, in processes of their own."""

    packages: Path
    folder: Path  # of runs

    @property
    def environment(self) -> dict[str, str]:
        """No key, no server and no folder of ours; a home where no package has left anything."""
        names = ("WANDB_", "MLFLOW_", "TRACKIO_", "HF_", "ROUTERSHIFT_")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(names)}
        home = self.folder / "home"
        home.mkdir(parents=True, exist_ok=True)
        path = [str(self.packages), str(_ROOT), str(_ROOT / "proto")]
        return {**clean, "PYTHONPATH": os.pathsep.join(path), "HOME": str(home)}

    def record(
        self,
        *names: str,
        service: str,
        records: list[dict[str, Any]],
        environment: Any = None,
        **options: Any,
    ) -> dict[str, Any]:
        """What a service does, from start to end; see `tests.support.tracker_process` for options and answer."""
        order = {"trackers": names, "service": service, "records": records, "folder": str(self.folder), **options}
        answer: dict[str, Any] = self._ask("tests.support.tracker_process", order, environment or {})
        return answer

    def read(self, tracker: str, **options: Any) -> Any:
        """What the tracker has, as its own package reads it; see `tests.support.tracker_readers`."""
        order = {"tracker": tracker, "folder": str(self.folder), **options}
        return self._ask("tests.support.tracker_readers", order, {})

    def _ask(self, module: str, order: dict[str, Any], environment: dict[str, str]) -> Any:
        answer = subprocess.run(
            [sys.executable, "-m", module],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.environment, **environment},
            timeout=_PROCESS_SECONDS,
        )
        assert answer.returncode == 0, answer.stderr[-4000:]
        return json.loads(answer.stdout.splitlines()[-1])
