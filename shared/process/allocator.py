"""Memory that glibc's malloc keeps after a process has freed it."""

import ctypes
import resource
from pathlib import Path

# Of the memory that steps of the usual size take: more is what they have left behind.
_GROWTH = 1.25


def return_freed_memory() -> None:
    """Gives the system back every free page of malloc, in the arenas of all threads (malloc_trim(3)).

    malloc by itself gives back only what lies at the end of an arena, and raises what it takes from the system apart
    to the largest block that was freed, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD). So tensors lie in arenas among
    small objects that live on, and what they leave cannot be used in another thread: a process that computes in
    changing threads grows. A lower threshold would end that too, and costs a quarter of the time: the system has to
    clear the pages of each tensor.

    Does nothing where the C library has no malloc_trim.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class FreedMemory:
    """What a process keeps from one step of its work to the next: enough for a step, and not what steps leave behind.

    A step that follows `return_freed_memory` takes every page from the system anew, which clears it: a quarter of the
    processor time of small steps. So it is called after the first step, which has what the start has freed as well, and
    after that only where the process has grown by a quarter.
    """

    def __init__(self) -> None:
        self._is_started = False
        self._usual: int | None = None  # bytes, after the step that followed the last return

    def after_step(self) -> None:
        """Looks at the memory of this process, and returns what it need not keep."""
        if self.has_grown(resident_bytes()):
            return_freed_memory()

    def has_grown(self, resident: int) -> bool:
        """Whether so many bytes, after a step, are more than it should keep; then it is taken to return them."""
        if not self._is_started:
            self._is_started = True
            return True
        if self._usual is None:
            self._usual = resident
        if resident <= _GROWTH * self._usual:
            return False
        self._usual = None
        return True


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * resource.getpagesize()
