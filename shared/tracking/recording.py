"""Writing records: to the run's folder, and to its trackers in a thread that nobody waits for."""

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

from prometheus_client import Counter

from shared.settings import RunSettings
from shared.tracking import records
from shared.tracking.base import Kind, Tracker
from shared.tracking.registry import make_trackers

log = logging.getLogger(__name__)

TRACKED = Counter(
    "routershift_tracker_records_total", "Records for a tracker: ok, failed or dropped", ["tracker", "outcome"]
)

_FILES: Mapping[Kind, str] = {"step": records.LEARNER, "evaluation": records.EVALUATIONS}
_MOST_WAITING = 1000  # records; a tracker that is slower for longer loses some
_CLOSE_SECONDS = 10.0

_Record = tuple[Kind, Mapping[str, Any]]


class Recording:
    """Where the records of a process go, from its start to `close`."""

    def __init__(self, run: RunSettings) -> None:
        """Raises NotFoundError for an unknown tracker, and what a tracker raises that cannot be used."""
        self._folder: Path = run.path
        self._trackers = [_Sender(tracker) for tracker in make_trackers(run.trackers, run)]

    def add(self, kind: Kind, record: Mapping[str, Any]) -> None:
        """Writes a record to the run's folder and hands it to every tracker.

        Raises:
            OSError: the disk refused it; the trackers have it even so.
        """
        for tracker in self._trackers:
            tracker.send(kind, records.strict(record))
        records.append(self._folder / _FILES[kind], record)

    def close(self) -> None:
        """Gives the trackers some seconds to send what they hold."""
        for tracker in self._trackers:
            tracker.close()


class _Sender:
    """One tracker and its thread."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self._waiting: Queue[_Record | None] = Queue(_MOST_WAITING)
        self._fails = False
        for outcome in ("ok", "failed", "dropped"):
            TRACKED.labels(tracker.name, outcome)  # from 0 on: Prometheus sees no increase from nothing to 1
        self._thread = threading.Thread(target=self._run, name=f"tracker {tracker.name}", daemon=True)
        self._thread.start()

    def send(self, kind: Kind, record: Mapping[str, Any]) -> None:
        try:
            self._waiting.put_nowait((kind, dict(record)))
        except Full:
            TRACKED.labels(self._tracker.name, "dropped").inc()

    def close(self) -> None:
        try:
            self._waiting.put(None, timeout=_CLOSE_SECONDS)
        except Full:
            pass
        else:
            self._thread.join(_CLOSE_SECONDS)
        if self._thread.is_alive():
            log.error("tracker %s did not end within %g s; it loses %d records", self._tracker.name, _CLOSE_SECONDS,
                      len(self._left()))  # fmt: skip

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            try:
                self._tracker.log(*item)
            except Exception as error:  # whatever a package raises: nobody learns from it but people
                TRACKED.labels(self._tracker.name, "failed").inc()
                if not self._fails:  # said once, until it works again
                    log.error("tracker %s: %s: %s", self._tracker.name, type(error).__name__, error)
                self._fails = True
            else:
                TRACKED.labels(self._tracker.name, "ok").inc()
                self._fails = False
        try:
            self._tracker.close()
        except Exception as error:
            log.error("tracker %s did not close: %s: %s", self._tracker.name, type(error).__name__, error)

    def _left(self) -> Sequence[_Record]:
        left = []
        while True:
            try:
                if (item := self._waiting.get_nowait()) is not None:
                    left.append(item)
            except Empty:
                return left
