"""Turns a wedge into a crash, which a supervisor can mend: a thread that ends the process when it stands still.

It counts its own wakes and reads no clock. A process that was stopped or a machine that slept costs one wake, however
long it took, and an overloaded machine makes the count slower, never faster. What holds the interpreter's lock for ever
stops this thread too; it also stops the answers of the health service, so probes from outside see it.
"""

import asyncio
import faulthandler
import logging
import os
import tempfile
import threading
from dataclasses import dataclass

log = logging.getLogger(__name__)

_WAKES = 10  # in the time that the loop may stand still
_LAST_SECONDS = 2.0  # for the last line, which may wait for a lock that the wedge holds


@dataclass(slots=True)
class _Expected:
    """What has to end: what to say where it does not, and for how long it still may go on."""

    late: str
    wakes_left: int


class Watchdog:
    """Watches the running event loop, and one thing at a time that has to be done within a time of its own."""

    def __init__(self, seconds: float, setting: str) -> None:
        """Has to be made in the loop's thread.

        Args:
            seconds: how long the loop may stand still.
            setting: the name of what says so.
        """
        self._setting = setting
        self._loop = asyncio.get_running_loop()
        self._pace = seconds / _WAKES
        self._standing = 0  # wakes since the loop last ran
        self._expected: _Expected | None = None
        self._stacks = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  # open now: later there may be no room
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def expect(self, what: str, seconds: float, setting: str) -> None:
        """From now on this has to end, by `done`, within so many seconds, as a setting of this name says."""
        late = f"{what} took longer than {seconds:g} s; raise {setting} if it is only slow"
        self._expected = _Expected(late, round(seconds / self._pace))

    def done(self) -> None:
        self._expected = None

    def _watch(self) -> None:
        pause = threading.Event()
        while True:
            pause.wait(self._pace)
            self._standing += 1
            if self._standing > _WAKES:
                still = f"the event loop stood still for {self._pace * _WAKES:g} s"
                self._bite(f"{still}; raise {self._setting} if it is only slow")
            if (expected := self._expected) is not None:
                expected.wakes_left -= 1
                if expected.wakes_left < 0:
                    self._bite(expected.late)
            try:
                self._loop.call_soon_threadsafe(self._ran)
            except RuntimeError:  # closed: from here on the process itself is expected to end
                continue

    def _ran(self) -> None:
        self._standing = 0

    def _bite(self, why: str) -> None:
        faulthandler.dump_traceback(self._stacks)
        self._stacks.seek(0)
        stacks = self._stacks.read().splitlines()
        said = ("%s; the stacks of all threads are in the log", why)
        last = threading.Thread(target=log.critical, args=said, kwargs={"extra": {"stacks": stacks}}, daemon=True)
        last.start()
        last.join(_LAST_SECONDS)
        os._exit(1)
