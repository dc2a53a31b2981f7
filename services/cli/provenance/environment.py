"""What a start ran on: code, packages, machine and devices."""

import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

INSTALLATION = Path(__file__).resolve().parents[3]
_SECONDS = 20.0  # for a tool to answer


def environment() -> dict[str, Any]:
    """Fit for JSON; its keys are described in docs/reference/provenance.md."""
    return {
        "code": code(INSTALLATION),
        "python": platform.python_version(),
        "packages": packages(),
        "host": {
            "name": platform.node(),
            "system": platform.platform(),
            "processor": _processor(),
            "cores": os.cpu_count(),
            "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        },
        "devices": devices(),
    }


def code(installation: Path) -> dict[str, Any]:
    """The commit of the installation and whether files differ from it; None of both where it is no git checkout."""
    # A site-packages folder may lie inside somebody else's checkout: only one of this very folder is ours.
    if _answer("git", "-C", str(installation), "rev-parse", "--show-toplevel") != [str(installation)]:
        return {"folder": str(installation), "commit": None, "dirty": None}
    commit = _answer("git", "-C", str(installation), "rev-parse", "HEAD")
    changed = _answer("git", "-C", str(installation), "status", "--porcelain", "--untracked-files=normal")
    return {"folder": str(installation), "commit": commit[0] if commit else None, "dirty": bool(changed)}


def packages() -> dict[str, str]:
    """The version of every installed package, by its name."""
    # A folder of metadata that an installation left behind has no name.
    found = {each.metadata["Name"]: each.version for each in distributions() if each.metadata["Name"]}
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def devices() -> list[dict[str, str]]:
    """The NVIDIA GPUs of this machine; none where it has none, or no driver."""
    names = ("name", "uuid", "memory.total", "driver_version")
    lines = _answer("nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader")
    return [
        dict(zip(("name", "uuid", "memory", "driver"), (cell.strip() for cell in line.split(",")), strict=False))
        for line in lines
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _answer(*command: str) -> Sequence[str]:
    """The lines that a tool prints; none where it is not there or fails."""
    if shutil.which(command[0]) is None:
        return []
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()
