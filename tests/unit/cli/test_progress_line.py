"""The line that changes on a terminal, and what is said beside it."""

import os
import pty
import subprocess
import sys

import pytest

from tests.support import cli

SCRIPT = """
from services.cli.progress_line import progress_line, say
with progress_line() as show:
    show("step 1" + "!" * 300)
    say("a line that stays")
    show("step 2")
say("the end")
"""


def test_elsewhere_than_on_a_terminal_there_is_none() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=cli.environment())
    assert ran.returncode == 0, ran.stderr
    assert [line[9:] for line in ran.stderr.splitlines()] == ["a line that stays", "the end"]


def test_on_a_terminal_it_is_one_line_and_goes_in_the_end() -> None:
    ours, theirs = pty.openpty()
    environment = cli.environment(TERM="xterm", COLUMNS="60", LINES="20")
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=theirs, env=environment) as process:
        os.close(theirs)
        seen = ""
        while "the end" not in seen:
            seen += os.read(ours, 4096).decode()
    os.close(ours)
    assert process.returncode == 0
    assert "step 1" in seen
    assert "!" * 60 not in seen, "it is cut at the width of the terminal"
    stays = seen.index("a line that stays")
    assert "\x1b[2K" in seen[:stays], "the line is cleared for what is said"
    assert "\x1b[2K" in seen[seen.rindex("step 2") : seen.index("the end")]
    assert "\x1b[?25h" in seen, "the cursor is there again"


@pytest.mark.parametrize("on_a_terminal", [False, True])
def test_a_reader_that_is_gone_stops_nothing(on_a_terminal: bool) -> None:
    ours, theirs = pty.openpty() if on_a_terminal else os.pipe()
    os.close(ours)
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT + "print('done')"],
        stdout=subprocess.PIPE,
        stderr=theirs,
        text=True,
        env=cli.environment(TERM="xterm"),
    )
    os.close(theirs)
    assert (ran.returncode, ran.stdout) == (0, "done\n")
