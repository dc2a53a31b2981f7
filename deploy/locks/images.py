"""Writes deploy/docker/requirements/*.txt: what each image installs, pinned by version and by SHA-256.

    make image-locks

Versions are those of deploy/locks; which of them an image needs follows from pyproject.toml. The hashes are of the
files that pip chooses on this platform (CPython 3.11, x86-64; for gpu.txt 3.12), so an image for another one is locked
on a machine of its kind.
"""

import json
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

from deploy.locks.lock import closure

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "docker" / "requirements"
TORCH = "torch==2.13.0+cpu"
OLDER_PYTHON = "async-timeout==5.0.1"  # what redis needs below Python 3.11.3, as in Debian 12


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    core = _closure([*project["dependencies"], *extras["services"], *extras["traces"]])
    data = _closure(extras["data"]) - core
    torch = _closure(extras["learner"])
    sets = {
        "core": core,
        "data": data,
        "gateway": _closure(extras["gateway"]) - core - data,
        "reward": _closure(extras["reward"]) - core,
        "torch": torch - core,
        "vllm": _closure(extras["vllm"]) - core - torch,
    }
    FOLDER.mkdir(exist_ok=True)
    for name, packages in sets.items():
        pins = [TORCH if package == "torch" else f"{package}=={version(package)}" for package in packages]
        _write(name, _hashes([*pins, OLDER_PYTHON] if name == "core" else pins))
    # The vLLM image has Python 3.12, torch and transformers.
    gpu = [f"{package}=={version(package)}" for package in core | {"peft", "accelerate"}]
    _write("gpu", _hashes(gpu, "--python-version=3.12", "--only-binary=:all:", "--target=/nowhere"))


def _closure(roots: list[str]) -> set[str]:
    return closure([Requirement(root) for root in roots]) - {"pip"}


def _hashes(pins: list[str], *platform: str) -> list[str]:
    """One line a package: its pin and the hash of the file that pip would install."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "--quiet"]
    answer = subprocess.run([*command, *platform, "--report", "-", *pins], check=True, capture_output=True, text=True)
    lines = []
    for item in json.loads(answer.stdout)["install"]:
        metadata, archive = item["metadata"], item["download_info"]["archive_info"]
        pin = f"{metadata['name'].lower().replace('_', '-')}=={metadata['version']}"
        lines.append(f"{pin} --hash=sha256:{archive['hashes']['sha256']}")
    return sorted(lines)


def _write(name: str, lines: list[str]) -> None:
    (FOLDER / f"{name}.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
