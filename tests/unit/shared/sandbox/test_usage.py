"""The clocks of a program: processors, idleness, and the wall."""

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from shared.sandbox.sandbox import Sandboxes
from shared.sandbox.usage import ContentionError
from tests.support.sandboxes import LIMITS, made, run


def test_time_on_a_processor_is_the_limit_and_time_in_line_is_not(sandboxes: Sandboxes) -> None:
    """Beside many others it takes longer than all its time, by the clock on the wall."""
    program = "import time\nwhile time.process_time() < 0.6: pass\nprint('done')"
    hog = [sys.executable, "-c", "while True: pass"]
    with contextlib.ExitStack() as stack:
        for _ in range(8 * (os.cpu_count() or 1)):
            process = stack.enter_context(subprocess.Popen(hog))
            stack.callback(process.kill)
        assert run(sandboxes, program) == ("done\n", "exit", 0)


@pytest.mark.parametrize(
    ("program", "seconds", "idle_seconds"),
    [
        ("import time\ntime.sleep(1000)", 1000.0, 0.3),
        ("import os, time\nif os.fork(): os.kill(os.getpid(), 19)\ntime.sleep(1000)", 1000.0, 0.3),
        ("input()\nimport threading\nthreading.Event().wait()", 1000.0, 0.3),
        ("while True: pass", 0.3, 1000.0),
        ("import os\nos.fork()\nos.fork()\nwhile True: pass", 0.3, 1000.0),
        ("import os\nfor _ in range(10**9):\n    if not os.fork(): os._exit(0)\n    os.wait()", 0.3, 1000.0),
    ],
)
def test_each_clock_ends_what_uses_it_up(
    sandboxes: Sandboxes, program: str, seconds: float, idle_seconds: float
) -> None:
    limits = replace(LIMITS, seconds=seconds, idle_seconds=idle_seconds, wall_seconds=1000.0)
    with made(limits) as own:
        assert run(own, program, "\n")[1] == "time"


def test_a_machine_too_busy_to_tell_is_nobody_s_fault(sandboxes: Sandboxes) -> None:
    limits = replace(LIMITS, seconds=1000.0, idle_seconds=1000.0, wall_seconds=0.3)
    with (
        made(limits) as own,
        pytest.raises(ContentionError, match="too busy: in 0 s a prog"),
    ):
        run(own, "while True: pass")


def test_many_processes_of_a_program_have_the_weight_of_one(sandboxes: Sandboxes) -> None:
    limits = replace(LIMITS, seconds=1000.0, idle_seconds=1000.0, wall_seconds=1000.0)
    with made(limits) as own, own.take() as sandbox:
        clock = sandbox.clock()
        sandbox.give(["programs", "import os\nos.fork()\nos.fork()\nwhile True: pass", "main.py", [], False])
        sandbox.give([""])
        outermost = psutil.Process(sandbox.pid)
        while not sum(child.nice() >= 5 for child in outermost.children(recursive=True)) >= 4:
            assert not clock.over()
            time.sleep(0.01)
