"""Weights & Biases: a run for each service, in a group for the run.

W&B lets two processes write one run in its mode "shared", which it calls experimental and which excludes the mode
"offline". Runs in a group work in every mode.
"""

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from shared.errors import PreconditionError
from shared.settings import BaseSettings
from shared.tracking.base import Kind, Tracker
from shared.tracking.trackers.flat import config, flatten
from shared.tracking.trackers.packages import require

_AXIS = "step"
_CORE = "wandb-core"  # its process, which sends what this one logs


class WandbTracker(Tracker):
    name: ClassVar[str] = "wandb"

    def __init__(self, settings: BaseSettings, service: str) -> None:
        super().__init__(settings, service)
        require(self.name, "wandb")
        self._own = settings.tracking.wandb
        self._mode = self._own.mode or os.environ.get("WANDB_MODE") or "online"
        self._wandb_run: Any = None
        if self._mode == "online":
            import wandb

            if not wandb.api.api_key:
                raise PreconditionError(
                    "run.trackers has 'wandb', and there is no API key: set WANDB_API_KEY, run `wandb login`, or set "
                    "tracking.wandb.mode to offline"
                )

    def open(self) -> str:
        """Starts the run of this service, or goes on with it: its id follows from that of the run."""
        import wandb

        folder = self._own.folder or self.run.path
        folder.mkdir(parents=True, exist_ok=True)
        self._wandb_run = wandb.init(
            entity=self._own.entity,
            project=self._own.project,
            group=self.run.id,
            job_type=self.service,
            id=f"{self.run.id}-{self.service}",
            name=f"{self.run.id} {self.service}",
            tags=self._own.tags or None,
            resume="allow",
            config=config(self.settings),
            allow_val_change=True,  # a resumed run may have other settings
            dir=str(folder),
            settings=wandb.Settings(
                mode=self._mode,
                console="off",  # logs are in the run's folder
                silent=True,
                init_timeout=self._own.start_seconds,
                finish_timeout=self.settings.tracking.close_seconds,
            ),
        )
        # Not W&B's own step, which never goes back: a resumed run takes some steps again.
        self._wandb_run.define_metric("*", step_metric=_AXIS)
        if self._mode == "online":
            return str(self._wandb_run.url)
        return f"{self._mode}, in {folder / 'wandb'}; wandb sync sends it"

    def log(self, kind: Kind, record: Mapping[str, Any]) -> None:
        flat = flatten(kind, record)
        self._wandb_run.log({_AXIS: flat.step, **flat.numbers, **flat.texts})

    def close(self) -> None:
        self._wandb_run.finish()

    def abandon(self) -> None:
        """Ends W&B's own process, which Python would wait for at its end. What it has not sent is in its folder."""
        for pid in _children():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == _CORE:
                    os.kill(pid, signal.SIGKILL)


def _children() -> list[int]:
    """The process ids of this process's children, which any of its threads may have started."""
    return [int(pid) for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]
