"""Memory that glibc's malloc keeps after a process has freed it."""

import ctypes


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
