"""Every bench one after the other, each in a process of its own: what it measured, its seconds and its CPU-seconds."""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from services.cli.commands.bench import REPOSITORY, benches
from shared.errors import InvalidInputError
from tests.bench.timing import cpu_seconds

QUICK = {"timeout": 300.0}
_OWN = "all"
# With --quick, of those whose own quick form takes minutes, as it has something to show.
_BRIEF: Mapping[str, Sequence[str]] = {
    "stability": ("--seeds", "1", "--steps", "4", "--every", "4", "--held-out", "64", "--arms", "grpo+none,grpo+shift"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", help="names of benches, with commas between; default: every one")
    parser.add_argument("--timeout", type=float, default=14400.0, help="seconds after which a bench has failed")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Goes on where one fails; `failed` has the names of those.

    Raises:
        InvalidInputError: there is no bench of a name.
    """
    known = [name for name in benches(REPOSITORY) if name != _OWN]
    wanted = arguments.only.split(",") if arguments.only else known
    if unknown := [name for name in wanted if name not in known]:
        raise InvalidInputError(f"--only has {', '.join(unknown)}; there are: {', '.join(known)}")
    began = time.monotonic()
    found = {}
    for number, name in enumerate(wanted, start=1):
        options = ["--json", *(["--quick", *_BRIEF.get(name, ())] if arguments.quick else [])]
        sys.stderr.write(f"{number}/{len(wanted)} routershift bench {shlex.join([name, *options])}\n")
        found[name] = _measured([name, *options], arguments.timeout)
        sys.stderr.write(f"{name}: {found[name]['seconds']:.0f} s, {found[name].get('error', 'done')}\n")
    return {
        "benches": found,
        "failed": [name for name, each in found.items() if "error" in each],
        "seconds": round(time.monotonic() - began, 1),
    }


def _measured(options: Sequence[str], timeout: float) -> dict[str, Any]:
    """What a bench printed, or why it did not; what it tells on stderr is passed on."""
    began, spent = time.monotonic(), cpu_seconds()
    command = [sys.executable, "-m", "services.cli.main", "bench", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            printed, _ = process.communicate(timeout=timeout)
            ended = _result(process.returncode, printed)
        except subprocess.TimeoutExpired:
            ended = {"error": f"not within {timeout:g} s"}
        finally:  # also of who stops, and for what a bench has left behind
            _kill(process.pid)
    return {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(cpu_seconds() - spent, 1), **ended}


def _result(code: int, printed: str) -> dict[str, Any]:
    if code:
        return {"error": f"it ended with {code}"}
    return {"result": json.loads(printed.splitlines()[-1])}


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return
