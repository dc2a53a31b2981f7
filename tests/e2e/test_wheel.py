"""The wheel, installed by itself into an empty environment: its commands run, and what they read is in it."""

import json
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import cli

Run = Callable[..., subprocess.CompletedProcess[str]]
_SOURCES = ("services", "shared", "proto", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves its folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in _SOURCES:
        source = repository / name
        if source.is_dir():
            shutil.copytree(source, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / "source" / name)
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "source"))
    (built,) = folder.glob("*.whl")
    return built


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture(scope="module")
def routershift(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs the installed command in a folder of its own. The environment sees what is installed here beside us."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", symlinks=True)
    packages = folder / "venv/lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    pip("install", "--no-deps", "--no-index", "--target", str(packages), str(wheel))
    # A path in a .pth file is no site folder of its own: what is editable there, as we are, stays out of sight.
    others = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages / "others.pth").write_text("\n".join(others) + "\n")
    (folder / "elsewhere").mkdir()
    script = "import sys; from services.cli.main import main; sys.exit(main())"
    environment = {k: v for k, v in cli.environment().items() if k != "PYTHONPATH"}

    def run(*arguments: str, code: str = script) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(folder / "venv/bin/python"), "-c", code, *arguments],
            cwd=folder / "elsewhere",
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
        )

    where = run(
        code="import services, shared, routershift.v1 as v1; print(services.__path__, shared.__path__, v1.__path__)"
    )
    assert where.returncode == 0, where.stderr
    assert where.stdout.count(str(packages)) == 3, where.stdout
    return run


def test_the_wheel_holds_what_the_code_reads(wheel: Path, repository: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for pattern in ("*.lua", "*.html", "*.pyi", "py.typed"):
        for folder in ("services", "shared"):
            for file in (repository / folder).rglob(pattern):
                assert str(file.relative_to(repository)) in names
    assert any(name.endswith(".lua") for name in names)
    assert any(name == "services/cli/commands/run.py" for name in names)
    assert not [name for name in names if name.startswith(("tests/", "deploy/"))]


def test_the_command_is_an_entry_point(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (entry_points,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
    assert "routershift = services.cli.main:main" in archive.read(entry_points).decode()


def test_its_commands_run_outside_the_repository(routershift: Run, tmp_path: Path) -> None:
    for arguments, expected in (
        (["--help"], "commands:"),
        (["--version"], "routershift "),
        (["settings", "learner.optimizer"], "learning_rate"),
        (["completion", "bash"], "complete -F _routershift routershift"),
        (["run", "--help"], "RECIPE"),
    ):
        ran = routershift(*arguments)
        assert ran.returncode == 0, ran.stderr
        assert expected in ran.stdout
    items = tmp_path / "items.jsonl"
    items.write_text(json.dumps({"response": "x", "reference": "x"}) + "\n")
    ran = routershift("score", "--verifier", "exact", "--input", str(items))
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["reward"] == 1.0
    ran = routershift("bench")
    assert ran.returncode == 2
    assert "clone RouterShift" in ran.stderr


def test_its_scripts_of_redis_are_read(routershift: Run, redis_url: str) -> None:
    code = f"""
import asyncio
from shared.settings import RedisSettings, StreamSettings
from shared.streams.connection import connect
from shared.streams.run import Run
async def main():
    redis = await connect(RedisSettings(url={redis_url!r}))
    print((await Run(redis, "wheel", StreamSettings()).ledger()).balanced)
    await redis.aclose()
asyncio.run(main())
"""
    ran = routershift(code=code)
    assert (ran.stdout, ran.returncode) == ("True\n", 0), ran.stderr
