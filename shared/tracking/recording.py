"""Writing records: to the run's folder, and to its trackers in a thread that nobody waits for."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Queue
from typing import Any

from prometheus_client import Counter

from shared.settings import BaseSettings
from shared.tracking import records
from shared.tracking.base import Kind, Tracker
from shared.tracking.registry import make_trackers

log = logging.getLogger(__name__)

TRACKED = Counter(
    "routershift_tracker_records_total",
    "Records for an experiment tracker: taken, refused by it, or lost as it was slower than "
    "the run for too long or had not ended in time",
    ["tracker", "outcome"],
)

# Between attempts to open a tracker; each is twice the one before.
_FIRST_PAUSE_SECONDS = 1.0
_LONGEST_PAUSE_SECONDS = 60.0
_FILES: Mapping[Kind, str] = {"step": records.LEARNER, "evaluation": records.EVALUATIONS}

_Record = tuple[Kind, Mapping[str, Any]]


class Recording:
    """Where the records of a process go, from its start to `close`."""

    def __init__(self, settings: BaseSettings, service: str) -> None:
        """Raises NotFoundError for an unknown tracker, and what a tracker raises that cannot be used."""
        self._folder: Path = settings.run.path
        self._close_seconds = settings.tracking.close_seconds
        made = make_trackers(settings.run.trackers, settings, service)
        self._trackers = [_Sender(tracker, settings.tracking.max_waiting) for tracker in made]

    def add(self, kind: Kind, record: Mapping[str, Any]) -> None:
        """Writes a record to the run's folder and hands it to every tracker.

        Raises:
            OSError: the disk refused it; the trackers have it even so.
        """
        for tracker in self._trackers:
            tracker.send(kind, records.strict(record))
        records.append(self._folder / _FILES[kind], record)

    def close(self) -> None:
        """Gives the trackers `tracking.close_seconds`, all together, to send what they hold."""
        deadline = time.monotonic() + self._close_seconds
        for tracker in self._trackers:
            tracker.end()
        for tracker in self._trackers:
            if not tracker.join(deadline):
                log.error(
                    "tracker %s did not end within %g s (tracking.close_seconds); it loses %d records",
                    tracker.name, self._close_seconds, tracker.give_up(),
                )  # fmt: skip


class _Sender:
    """One tracker and its thread. A record is counted once: ok, failed or dropped."""

    def __init__(self, tracker: Tracker, max_waiting: int) -> None:
        self.name = tracker.name
        self._tracker = tracker
        self._max_waiting = max_waiting
        self._waiting: Queue[_Record | None] = Queue()  # bounded by `send`, so that the end always finds room
        self._ending = threading.Event()
        self._lock = threading.Lock()
        self._unsettled = 0  # records that wait or are being sent
        self._is_given_up = False
        self._is_said = False  # why it fails
        for outcome in ("ok", "failed", "dropped"):
            TRACKED.labels(self.name, outcome)  # from 0 on: Prometheus sees no increase from nothing to 1
        self._thread = threading.Thread(target=self._run, name=f"tracker {self.name}", daemon=True)
        self._thread.start()

    def send(self, kind: Kind, record: Mapping[str, Any]) -> None:
        with self._lock:
            if self._waiting.qsize() >= self._max_waiting:
                TRACKED.labels(self.name, "dropped").inc()
                return
            self._unsettled += 1
        self._waiting.put((kind, dict(record)))

    def end(self) -> None:
        """Tells the thread to close its tracker after what waits."""
        self._waiting.put(None)
        self._ending.set()

    def join(self, deadline: float) -> bool:
        """Waits for the thread until the deadline (time.monotonic); whether it has ended."""
        self._thread.join(max(0.0, deadline - time.monotonic()))
        return not self._thread.is_alive()

    def give_up(self) -> int:
        """Counts what is not settled as dropped, whatever the thread still does with it; says how many that are."""
        with self._lock:
            self._is_given_up = True
            TRACKED.labels(self.name, "dropped").inc(self._unsettled)
        self._works(self._tracker.abandon)
        return self._unsettled

    def _run(self) -> None:
        is_open = self._opens()
        while (item := self._waiting.get()) is not None:
            works = is_open and self._works(lambda: self._tracker.log(*item))
            if not self._settle("ok" if works else "failed"):
                return
            if works:
                self._is_said = False
        if is_open:
            self._works(self._tracker.close)

    def _opens(self) -> bool:
        """Tries until it is open, while records wait; False where the service ended before."""
        pause = _FIRST_PAUSE_SECONDS
        while not self._works(self._open):
            if self._ending.wait(pause):
                return False
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        return True

    def _open(self) -> None:
        if where := self._tracker.open():
            log.info("tracker %s: %s", self.name, where)

    def _works(self, call: Callable[[], object]) -> bool:
        """Whether a call to the tracker raised nothing. Why it did is said once, until a record is taken again."""
        try:
            call()
        except BaseException as error:  # whatever a package raises, SystemExit and KeyboardInterrupt among it
            if not self._is_said:
                reason = " ".join(str(error).split()) or "no reason given"
                log.error("tracker %s: %s: %s", self.name, type(error).__name__, reason)
            self._is_said = True
            return False
        return True

    def _settle(self, outcome: str) -> bool:
        """Counts a record; False where all that was unsettled has been given up."""
        with self._lock:
            if self._is_given_up:
                return False
            self._unsettled -= 1
            TRACKED.labels(self.name, outcome).inc()
        return True
