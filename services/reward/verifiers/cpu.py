"""CPU time as a limit: what takes longer is given up, and the caller decides what that means.

Unlike the deadline of a verification, which is wall clock and ends a process, this one does not depend on what else the
machine is doing: an answer that is slow to judge is the answer's fault, and a slow machine is not.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN_SECONDS = 0.25  # where a library swallowed the first exception


class CpuTimeError(BaseException):
    """The time is used up. No `Exception`, because the libraries under it catch those and go on."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Ends its block after so much CPU time of the process. Outside the main thread, which alone gets signals, it
    limits nothing.

    Raises:
        CpuTimeError: between two steps of the interpreter, or within `re`; not within other C functions.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise CpuTimeError

    before = signal.signal(signal.SIGPROF, stop)
    try:
        signal.setitimer(signal.ITIMER_PROF, seconds, _AGAIN_SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
