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

from shared.errors import UnavailableError

TRL = "trl==1.16.0"
_INSTALL_SECONDS = 180


def python() -> Path:
    """The interpreter of the environment, which is made where it is not there yet.

    Raises:
        UnavailableError: it cannot be made, as where no package index can be reached; names the command.
    """
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
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    command = [*pip, "--retries", "1", "--target", str(site), TRL]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise UnavailableError(
            f"{TRL} is not installed: no answer in {_INSTALL_SECONDS} s to `{' '.join(command)}`"
        ) from None
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UnavailableError(
            f"{TRL} is not installed: {why}; where a package index can be reached: `{' '.join(command)}`"
        )
