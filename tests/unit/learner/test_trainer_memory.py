"""What a trainer's process keeps of the memory that its tensors have freed."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.training import PLAIN, make

_MIB = 1 << 20


class _Mallinfo2(ctypes.Structure):
    """struct mallinfo2 of glibc 2.33 and later."""

    _names = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    _fields_ = [(name, ctypes.c_size_t) for name in _names]


def main(folder: Path) -> None:
    """In a process of its own, whose malloc no other test has changed; prints the bytes that malloc took and gave."""
    import torch

    make(folder, **PLAIN)
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    for size in (31 * _MIB, 2 * _MIB):
        before = mallinfo2().hblkhd
        block = torch.empty(size, dtype=torch.uint8)
        held = mallinfo2().hblkhd
        del block
        print(held - before, held - mallinfo2().hblkhd)


def test_large_blocks_go_back_to_the_system_whatever_was_freed_before(folder: Path) -> None:
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("this C library has no mallinfo2")
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.learner.test_trainer_memory", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    (first_taken, first_given), (second_taken, second_given) = (
        tuple(map(int, line.split())) for line in done.stdout.splitlines()
    )
    assert first_taken == first_given > 31 * _MIB
    assert second_taken == second_given > 2 * _MIB, "a block that was freed before has raised malloc's threshold"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
