"""What every command has in common: the registry, laziness, exit codes, and output that nobody reads."""

import subprocess
import sys
from importlib.metadata import EntryPoint, version
from pathlib import Path

import pytest

from services.cli import registry
from services.cli.main import build_parser, main
from shared.errors import PreconditionError
from tests.support import cli

COMMANDS = {
    "audit", "bench", "completion", "dead", "doctor", "report", "run", "score", "serve", "settings", "status", "up",
}  # fmt: skip
GREETING = '''"""Greets whom you name."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name")


def run(arguments: argparse.Namespace) -> int:
    print(f"hello {arguments.name}")
    return 7
'''


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that are entry points of a package under the names of their files."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def entry_points(group: str) -> list[EntryPoint]:
        return [EntryPoint(file.stem.removeprefix("my_"), file.stem, group) for file in sorted(tmp_path.glob("*.py"))]

    monkeypatch.setattr(registry, "entry_points", entry_points)
    return tmp_path


def test_every_module_of_the_folder_is_a_command_that_says_what_it_does() -> None:
    known = registry.known()
    assert known.keys() >= COMMANDS
    for entry in known.values():
        assert entry.help.endswith("."), entry.name
        assert len(entry.help) < 120
        entry.load()


def test_another_package_adds_a_command_with_one_file(plugins: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (plugins / "my_greet.py").write_text(GREETING)
    assert main(["--help"]) == 0
    assert "Greets whom you name." in capsys.readouterr().out
    assert "my_greet" not in sys.modules, "help imports no command"
    assert main(["greet", "you"]) == 7
    assert capsys.readouterr().out == "hello you\n"
    assert main(["greet"]) == 2


def test_a_broken_command_of_a_package_is_named_and_hurts_no_other(
    plugins: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (plugins / "my_broken.py").write_text('"""Is broken."""\nimport nothing_of_this_name\n')
    (plugins / "my_empty.py").write_text('"""Has no functions."""\n')
    assert main(["bench"]) == 0
    assert main(["--help"]) == 0
    capsys.readouterr()
    assert main(["broken"]) == 2
    assert "entry point broken = my_broken" in capsys.readouterr().err
    assert main(["empty"]) == 2
    assert "has no function add_arguments" in capsys.readouterr().err


def test_a_name_that_is_taken_is_refused(plugins: Path) -> None:
    (plugins / "my_run.py").write_text(GREETING)
    with pytest.raises(PreconditionError, match=r"the name 'run' is taken in routershift\.commands"):
        registry.known()


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys; from services.cli.main import main; code = main(['--help']); "
        "heavy = {'torch', 'transformers', 'vllm', 'redis', 'grpc', 'numpy', 'pydantic'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, env=cli.environment()
    )
    assert ran.returncode == 0, ran.stderr
    assert all(f"    {name} " in ran.stdout or f"    {name}\n" in ran.stdout for name in COMMANDS)


def test_the_version_is_that_of_the_package_and_names_its_commit(repository: Path, tmp_path: Path) -> None:
    ran = cli.run("--version", cwd=tmp_path)
    assert ran.returncode == 0
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True)
    commit = f", commit {head.stdout[:12]}" if head.returncode == 0 else ""
    known = f"routershift {version('routershift')}{commit}"
    assert ran.stdout in (f"{known}\n", f"{known} with changes\n")


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["run"], ["dead", "x", "eat"], ["serve", "nothing"]])
def test_arguments_that_do_not_fit(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


def _closed_early(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command whose reader is gone before the first byte."""
    process = subprocess.Popen(
        [*cli.ROUTERSHIFT, *arguments],
        cwd=tmp_path,
        env=cli.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    return process.wait(120), said


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["settings"],
        ["settings", "--json"],
        ["doctor"],
        ["--version"],
        ["completion", "bash"],
        ["bench"],
        ["score", "--verifier", "exact", "--input", "items.jsonl"],
    ],
)
def test_output_that_nobody_reads_is_no_error(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "items.jsonl").write_text('{"response": "x", "reference": "x"}\n' * 1000)
    code, said = _closed_early(tmp_path, *arguments)
    assert said == ""
    assert code == (0 if "--help" in arguments else 141)  # argparse looks away by itself


def test_output_onto_a_full_disk_is_one_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ran = subprocess.run(
            [*cli.ROUTERSHIFT, "settings"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=cli.environment(),
        )
    assert ran.returncode == 1
    assert ran.stderr.splitlines() == ["routershift: [Errno 28] No space left on device"]


def test_the_parser_of_all_commands_has_their_arguments() -> None:
    parsed = build_parser().parse_args(["dead", "RUN", "show", "1-0"])
    assert (parsed.name, parsed.action, parsed.ids) == ("RUN", "show", ["1-0"])
