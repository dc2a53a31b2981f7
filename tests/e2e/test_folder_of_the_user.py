"""Commands in a folder whose own modules are called like ours, like the standard library and like packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cli import environment
from tests.support.models import save_model

COMMAND = Path(sys.executable).parent / "routershift"  # `python -m` would search the folder itself
PACKAGES = ("services", "shared", "routershift", "tests")
MODULES = (
    "types",
    "random",
    "json",
    "queue",
    "tempfile",
    "redis",
    "grpc",
    "numpy",
    "torch",
    "transformers",
    "pydantic",
)
TRAP = "import sys\nsys.stderr.write(f'imported {__file__}')\nraise SystemExit(99)\n"

REWARD = """
import random  # the library's, though there is one beside this file
from rules import share_of_digits

def score(response):
    return share_of_digits(response) + 0.01 * random.random()
"""
RULES = """
def share_of_digits(text):
    return sum(c.isdigit() for c in text) / max(1, len(text))
"""
RECIPE = """
[run]
model = "model"
id = "first"
steps = 2
groups_per_step = 4

[rollout]
n = 4
max_tokens = 8

[generation]
engine = "torch"

[[data.train]]
source = "sums.jsonl"
columns = { prompt = "question", reference = "answer" }
verifier = "mine"
chat_template = false

[reward.verifiers.mine]
file = "rewards/mine.py"

[learner.parallel]
processes = 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As a user may have it. Whatever imports one of its traps ends with 99."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(TRAP)
    for name in MODULES:
        (tmp_path / f"{name}.py").write_text(TRAP)
    rewards = tmp_path / "rewards"
    rewards.mkdir()
    (rewards / "mine.py").write_text(REWARD)
    (rewards / "rules.py").write_text(RULES)
    (rewards / "random.py").write_text(TRAP)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    rows = [{"question": f"{n}+{2 * n}=", "answer": 3 * n} for n in range(200)]
    (tmp_path / "sums.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "items.jsonl").write_text(json.dumps({"response": "1 x", "reference": 1}) + "\n")
    save_model(tmp_path / "model")
    return tmp_path


def routershift(folder: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        [COMMAND, *arguments], cwd=folder, env=environment(**changes), capture_output=True, text=True, timeout=280
    )
    assert "imported" not in ran.stderr + ran.stdout, ran.stderr + ran.stdout
    return ran


def test_commands_read_none_of_its_modules(folder: Path) -> None:
    for arguments in (("--help",), ("settings", "learner.optimizer"), ("data", "check", "recipe.toml"), ("runs", ".")):
        ran = routershift(folder, *arguments)
        assert ran.returncode == 0, ran.stderr
    ran = routershift(folder, "doctor", "--recipe", "recipe.toml")
    assert "ok   model" in ran.stdout, ran.stdout + ran.stderr
    ran = routershift(folder, "run", "recipe.toml", "--dry-run")
    assert "nothing to mend" in ran.stdout, ran.stdout + ran.stderr


def test_a_reward_imports_what_lies_beside_it(folder: Path) -> None:
    ran = routershift(folder, "score", "--verifier", "mine", "--input", "items.jsonl", "--recipe", "recipe.toml")
    assert ran.returncode == 0, ran.stderr
    assert 1 / 3 <= json.loads(ran.stdout)["reward"] < 0.35


def test_a_folder_beside_a_reward_that_is_called_like_ours_is_named(folder: Path) -> None:
    (folder / "rewards/mine.py").write_text("from shared.rules import share_of_digits\n")
    ran = routershift(folder, "score", "--verifier", "mine", "--input", "items.jsonl", "--recipe", "recipe.toml")
    assert ran.returncode == 2
    assert "mine.py:1: loading it raises ModuleNotFoundError" in ran.stderr
    assert "shared is a package of RouterShift here: rename the one beside the file" in ran.stderr


def test_a_run_and_all_its_processes_read_none_of_its_modules(folder: Path) -> None:
    ran = routershift(folder, "run", "recipe.toml")
    logs = "\n".join(log.read_text() for log in (folder / "runs/first/logs").glob("*.log"))
    assert ran.returncode == 0, ran.stderr + logs
    assert json.loads(ran.stdout.splitlines()[-1])["steps"] == 2
    assert f"imported {folder}" not in logs


@pytest.mark.skipif("PYTHONPATH" in os.environ, reason="PYTHONPATH is set, and may name our sources")
def test_the_users_own_script_finds_its_own_folders(folder: Path) -> None:
    """The library leaves them alone, so that a project of theirs can have both."""
    for name in PACKAGES[:2]:
        (folder / name / "__init__.py").write_text(f"NAME = 'their {name}'\n")
    (folder / "routershift/__init__.py").unlink()
    (folder / "routershift").rmdir()
    for name in MODULES:
        (folder / f"{name}.py").unlink()
    (folder / "train.py").write_text(
        "import services, shared\nfrom routershift import RouterTap, router_shift, rspo_loss\n"
        "print(services.NAME, shared.NAME, rspo_loss.__name__)\n"
    )
    ran = subprocess.run([sys.executable, "train.py"], cwd=folder, capture_output=True, text=True, timeout=120)
    assert (ran.stdout, ran.returncode) == ("their services their shared rspo_loss\n", 0), ran.stderr
