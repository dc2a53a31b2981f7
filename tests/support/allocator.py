"""Prints what malloc takes and gives back in a process that has a trainer, whose malloc nothing else has changed."""

import ctypes
import sys
from pathlib import Path

import torch

from tests.support.training import PLAIN, make

_MIB = 1 << 20


class _Mallinfo2(ctypes.Structure):
    """struct mallinfo2 of glibc 2.33 and later."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def main(folder: Path) -> None:
    """A line for each of two blocks, of 31 and then of 2 MiB: the bytes taken, and given back once it was freed."""
    make(folder, **PLAIN)
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    for size in (31 * _MIB, 2 * _MIB):
        before = mallinfo2().hblkhd
        block = torch.empty(size, dtype=torch.uint8)
        held = mallinfo2().hblkhd
        del block
        print(held - before, held - mallinfo2().hblkhd)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
