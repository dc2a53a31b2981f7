"""Packages of optional extras that are not in the project's environment, in folders of their own.

They are as in deploy/locks, and are downloaded once into the user's cache.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_LOCKS = Path(__file__).parents[2] / "deploy" / "locks"
_INSTALL_SECONDS = 240


def packages(name: str) -> Path:
    """The folder with those of deploy/locks/NAME.txt; skips the test, with the reason, where they cannot be had."""
    lock_file = _LOCKS / f"{name}.txt"
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "routershift-tests"
    version = hashlib.sha256(f"{sys.version_info[:2]} {lock_file.read_text()}".encode()).hexdigest()[:16]
    folder = cache / f"{name}-{version}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not folder.is_dir():
                _install(lock_file, folder)
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        pytest.skip(f"the packages of {name} are not here and cannot be installed: {said[-1] if said else error}")
    return folder


def _install(lock_file: Path, folder: Path) -> None:
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    subprocess.run(
        [*command, "--no-compile", "--target", str(partial), "-r", str(lock_file)],
        check=True,
        capture_output=True,
        text=True,
        timeout=_INSTALL_SECONDS,
        stdin=subprocess.DEVNULL,
    )
    partial.rename(folder)
