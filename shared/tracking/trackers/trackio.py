"""Trackio: a run for each service, in a group for the run, in local SQLite files or on a Hugging Face Space.

Trackio gives a run an id of its own when it is begun, so two processes that begin one name at once make two of it.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from shared.settings import BaseSettings
from shared.tracking.base import Kind, Tracker
from shared.tracking.trackers.flat import config, flatten
from shared.tracking.trackers.packages import require
from shared.tracking.trackers.urls import without_secrets


class TrackioTracker(Tracker):
    """What Trackio cannot write it tells by Python's warnings, in the service's log, and not to its caller."""

    name: ClassVar[str] = "trackio"

    def __init__(self, settings: BaseSettings, service: str) -> None:
        super().__init__(settings, service)
        require(self.name, "trackio")
        self._own = settings.tracking.trackio
        self._folder = self._own.folder or Path(os.environ.get("TRACKIO_DIR") or self.run.folder / "trackio")
        self._trackio_run: Any = None

    def open(self) -> str:
        """Begins the run of this service, or goes on with the one of its name."""
        # Trackio reads it when it is imported, and has no argument for it.
        os.environ["TRACKIO_DIR"] = str(self._folder.absolute())
        import trackio

        self._folder.mkdir(parents=True, exist_ok=True)
        self._trackio_run = trackio.init(
            project=self._own.project,
            name=f"{self.run.id}-{self.service}",
            group=self.run.id,
            space_id=self._own.space,
            config=config(self.settings),
            resume="allow",
            embed=False,
        )
        where = self._own.space or os.environ.get("TRACKIO_SPACE_ID") or os.environ.get("TRACKIO_SERVER_URL")
        return f"project {self._own.project!r} in {without_secrets(where or str(self._folder))}"

    def log(self, kind: Kind, record: Mapping[str, Any]) -> None:
        flat = flatten(kind, record)
        self._trackio_run.log({**flat.numbers, **flat.texts}, step=flat.step)

    def close(self) -> None:
        self._trackio_run.finish()
