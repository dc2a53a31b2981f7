"""The completion script, in a real bash."""

import subprocess
from pathlib import Path

import pytest

from services.cli.commands.completion import script
from services.cli.main import build_parser
from tests.support import cli


@pytest.fixture(scope="module")
def bash() -> str:
    return script("bash", build_parser())


def complete(bash: str, folder: Path, *words: str) -> set[str]:
    """What Tab offers after these words, of which the last is being typed."""
    line = " ".join(words)
    typed = " ".join(f"'{word}'" for word in words)
    commands = (
        f"{bash}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; COMP_POINT={len(line)}\n"
        "compopt() { :; }\n_routershift\nprintf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    ran = subprocess.run(
        ["bash", "--norc", "-c", commands], cwd=folder, capture_output=True, text=True, timeout=60, check=True
    )
    assert ran.stderr == ""
    return set(ran.stdout.split())


def test_commands_and_their_options(bash: str, tmp_path: Path) -> None:
    assert {"run", "status", "settings", "completion", "--version"} <= complete(bash, tmp_path, "routershift", "")
    assert complete(bash, tmp_path, "routershift", "sta") == {"status"}
    assert {"--set", "--recipe", "--log-level", "learner"} <= complete(bash, tmp_path, "routershift", "serve", "")
    assert complete(bash, tmp_path, "routershift", "up", "--log-level", "W") == {"WARNING"}
    assert complete(bash, tmp_path, "routershift", "completion", "") >= {"bash", "zsh"}


def test_settings_and_their_tables(bash: str, tmp_path: Path) -> None:
    assert complete(bash, tmp_path, "routershift", "up", "--set", "learner.optimizer.learn") == {
        "learner.optimizer.learning_rate="
    }
    assert "learner.optimizer" in complete(bash, tmp_path, "routershift", "settings", "learner.o")


def test_runs_and_files(bash: str, tmp_path: Path) -> None:
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "recipe.toml").touch()
    assert "first" in complete(bash, tmp_path, "routershift", "status", "")
    assert complete(bash, tmp_path, "routershift", "run", "rec") == {"recipe.toml"}
    assert complete(bash, tmp_path, "routershift", "up", "--recipe", "rec") == {"recipe.toml"}


def test_both_shells_read_the_script(tmp_path: Path) -> None:
    for shell in ("bash", "zsh"):
        made = cli.run("completion", shell, cwd=tmp_path)
        assert made.returncode == 0, made.stderr
        subprocess.run(["bash", "-n"], input=made.stdout, text=True, check=True)
        assert made.stdout.endswith("complete -F _routershift routershift\n")
    assert "bashcompinit" in made.stdout
