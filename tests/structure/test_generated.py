"""Committed files that are made from others are what `make generated` makes of them today."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
VENV = Path(sys.executable).parents[1]
FOLDERS = ("deploy", "docs", "proto", "services", "shared")
FILES = ("Makefile", "pyproject.toml", "README.md", "LICENSE")


def contents(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for folder in FOLDERS
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all that is read, so that the files of this repository stay as they are."""
    root = tmp_path_factory.mktemp("repository")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(ROOT / file, root / file)
    return root


def make(root: Path, *goals: str) -> None:
    """Runs make with this environment, which it is not to install again."""
    installed = [part for stamp in (".torch", ".vllm", ".dev", ".docs") for part in ("-o", f"{VENV}/{stamp}")]
    command = ["make", "--silent", *installed, f"VENV={VENV}", *goals]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr


def test_what_is_committed_is_what_make_generated_makes(copy: Path) -> None:
    before = contents(copy)
    made = {name for name in before if name.endswith(("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi"))}
    made |= {name for name in before if name.startswith("deploy/grafana/dashboards/")}
    assert len(made) > 10
    for name in made:
        (copy / name).unlink()
    make(copy, "generated")
    after = contents(copy)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    assert changed == [], "run `make generated` and commit what it changes"


def test_help_has_a_line_for_every_goal(copy: Path) -> None:
    """And is what `make` alone prints."""
    goals = next(line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    shown = subprocess.run(["make", "--silent"], cwd=copy, capture_output=True, text=True, check=True).stdout
    assert [line.split()[0] for line in shown.splitlines()] == goals.split()[1:]
    assert all(len(line.split()) > 1 for line in shown.splitlines())


def test_commits_and_pull_requests_are_checked_by_the_same_commands() -> None:
    assert "entry: make --no-print-directory lint\n" in (ROOT / ".pre-commit-config.yaml").read_text()
    assert "run: .ci/run\n" in (ROOT / ".github/workflows/ci.yml").read_text()
