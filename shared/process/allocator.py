"""What glibc's malloc does with memory that a process has freed."""

import ctypes

_M_MMAP_THRESHOLD = -3  # of <malloc.h>
_LARGE_BYTES = 1 << 20


def return_large_blocks() -> None:
    """From now on a block of 1 MiB or more goes back to the system when it is freed. Of the whole process.

    glibc asks the system for each large block on its own, but raises what counts as large to the largest block that was
    freed, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD). Tensors below that then share arenas with small objects that
    live on, and their memory can neither go back nor, in the arena of another thread, be used again. A fixed threshold
    is what ends that; the price is that the system clears the pages of each large block anew.

    Does nothing where the C library has no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
