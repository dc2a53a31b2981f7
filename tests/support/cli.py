"""The command line as a process, for tests that run a command to its end."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROUTERSHIFT = (sys.executable, "-m", "services.cli.main")


def environment(**changes: str) -> dict[str, str]:
    """Our own, without settings of RouterShift, and with changes."""
    kept = {k: v for k, v in os.environ.items() if k != "REDIS_URL" and not k.startswith("ROUTERSHIFT_")}
    return {**kept, **changes}


def run(*arguments: str, cwd: Path, changes: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`routershift ARGUMENTS` in a folder, run to its end."""
    return subprocess.run(
        [*ROUTERSHIFT, *arguments],
        cwd=cwd,
        env=environment(**(changes or {})),
        capture_output=True,
        text=True,
        timeout=240,
    )
