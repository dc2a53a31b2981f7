"""What a trainer's process keeps of the memory that its tensors have freed."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="this C library has no malloc_trim")
def test_a_step_gives_back_what_was_freed_between_blocks_that_stay(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.allocator", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = map(int, done.stdout.split())
    assert before - after > 256 << 20, "448 MiB were free"
