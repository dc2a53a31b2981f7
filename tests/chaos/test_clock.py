"""A clock that is set for one process."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.chaos.clock import Clocks

SAYS_TIMES = "import time\nwhile input(): print(time.time(), time.monotonic(), flush=True)"


def test_the_time_of_day_jumps_and_the_monotonic_clock_does_not(tmp_path: Path) -> None:
    clocks = Clocks(tmp_path / "clocks")
    with subprocess.Popen(
        [sys.executable, "-c", SAYS_TIMES],
        env={**os.environ, **clocks.environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for seconds in (0, 3600, -3600):
            process.stdin.write("now\n")
            before = process.stdout.readline()
            clocks.set(process.pid, seconds)
            process.stdin.write("now\n")
            of_day, monotonic = map(float, process.stdout.readline().split())
            assert abs(of_day - time.time() - seconds) < 60, before
            assert abs(monotonic - time.monotonic()) < 60
        process.kill()
