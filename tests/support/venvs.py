"""Virtual environments with packages that are no dependency of ours, each made once in the user's cache folder."""

import fcntl
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from shared.errors import UnavailableError

_INSTALL_SECONDS = 600
_DONE = ".installed"  # written last


def python(*requirements: str, sees_ours: bool = False) -> Path:
    """The interpreter of the environment that has them, which is made where it is not there yet.

    Args:
        requirements: as pip takes them; the first names the environment.
        sees_ours: on top of the packages that are installed here, and without their own dependencies; but nothing of
            RouterShift except what PYTHONPATH names. Otherwise with their dependencies, and nothing else.

    Raises:
        UnavailableError: it cannot be made, as where no package index can be reached; names the command.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "routershift-tests"
    cache.mkdir(parents=True, exist_ok=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = cache / f"{requirements[0]}-{version}"
    site = folder / "lib" / f"python{version}" / "site-packages"
    with (cache / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / _DONE).exists():
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, symlinks=True)
            _install(["--no-deps", "--target", str(site)] if sees_ours else [], folder, requirements)
            (folder / _DONE).touch()
        if sees_ours:
            # Written each time: what is installed here may lie elsewhere than it did. A path in a .pth file is no site
            # folder of its own, so that what is editable there, as we are, stays out of sight.
            ours = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
            (site / "ours.pth").write_text("\n".join(ours) + "\n")
    return folder / "bin" / "python"


def _install(options: list[str], folder: Path, requirements: tuple[str, ...]) -> None:
    inside = [] if options else ["--python", str(folder / "bin" / "python")]
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", *inside, "install", "--quiet"]
    command = [*pip, "--retries", "1", *options, *requirements]
    name = requirements[0]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise UnavailableError(
            f"{name} is not installed: no answer in {_INSTALL_SECONDS} s to `{' '.join(command)}`"
        ) from None
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UnavailableError(
            f"{name} is not installed: {why}; where a package index can be reached: `{' '.join(command)}`"
        )
