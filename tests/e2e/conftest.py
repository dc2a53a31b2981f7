"""Starts commands, and kills what a test leaves of them."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import processes
from tests.support.command import Invocation, Start


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `routershift ARGUMENTS` in an empty folder, without the settings of our own environment."""
    started: list[Invocation] = []

    def begin(*arguments: str, environment: dict[str, str] | None = None) -> Invocation:
        mark = uuid.uuid4().hex
        clean = {k: v for k, v in os.environ.items() if k != "REDIS_URL" and not k.startswith("ROUTERSHIFT_")}
        process = subprocess.Popen(
            [sys.executable, "-m", "services.cli.main", *arguments],
            cwd=tmp_path,
            env={**clean, **(environment or {}), **processes.marked(mark)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(Invocation(process, mark))
        return started[-1]

    yield begin
    for invocation in started:
        processes.kill(invocation.mark)
        invocation.process.communicate()
