"""What a trainer's process keeps of the memory that its tensors have freed."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

_MIB = 1 << 20


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="this C library has no mallinfo2")
def test_large_blocks_go_back_to_the_system_whatever_was_freed_before(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.allocator", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    (first_taken, first_given), (second_taken, second_given) = (
        tuple(map(int, line.split())) for line in done.stdout.splitlines()
    )
    assert first_taken == first_given > 31 * _MIB
    assert second_taken == second_given > 2 * _MIB, "a block that was freed before has raised malloc's threshold"
