"""TRL in a virtual environment of its own, on top of the torch and transformers that are installed here.

It is no dependency of ours. The environment is made once, in the user's cache folder, and holds TRL alone: it sees our
packages, but nothing of RouterShift except what PYTHONPATH names.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

TRL = "trl==1.16.0"


def python() -> Path:
    """The interpreter of the environment; the test skips where there is none and no package index can be reached."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "routershift-tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{TRL}-{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(site.glob("trl-*.dist-info")):
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, symlinks=True)
            _install(site)
        # Written each time: what is installed here may lie elsewhere than it did. A path in a .pth file is no site
        # folder of its own, so that what is editable there, as we are, stays out of sight.
        ours = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        (site / "ours.pth").write_text("\n".join(ours) + "\n")
    return folder / "bin" / "python"


def _install(site: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    try:
        done = subprocess.run(
            [*command, "--retries", "1", "--target", site, TRL],
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
    except subprocess.TimeoutExpired:
        pytest.skip(f"{TRL} is not installed: pip had no answer in 180 s")
    if done.returncode:
        pytest.skip(f"{TRL} is not installed: {done.stderr.strip().splitlines()[-1]}")
