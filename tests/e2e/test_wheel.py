"""The wheel, installed by itself into an empty environment: its commands run, and what they read is in it."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from deploy.locks.lock import closure
from tests.support import cli

Small = Callable[..., Path]
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


@pytest.fixture
def small(wheel: Path, tmp_path: Path) -> Small:
    """Makes an environment of the wheel and of these packages with all that they need, and nothing else; its python."""

    def make(*packages: str) -> Path:
        venv.create(tmp_path / "venv", symlinks=True)
        site = tmp_path / "venv/lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        pip("install", "--no-deps", "--no-index", "--target", str(site), str(wheel))
        for name in closure([Requirement(package) for package in packages]):
            for part in {file.parts[0] for file in distribution(name).files or () if file.parts[0] != ".."}:
                if part != "__pycache__" and not (site / part).exists():
                    (site / part).symlink_to(Path(str(distribution(name).locate_file(part))).resolve())
        return tmp_path / "venv/bin/python"

    return make


def python(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in cli.environment().items() if k != "PYTHONPATH"}
    return subprocess.run(
        [str(python), *arguments], cwd=python.parent, env=environment, capture_output=True, text=True, timeout=120
    )


def test_the_library_needs_torch_alone(small: Small) -> None:
    installed = small("torch", "numpy")
    code = """
import importlib.util, torch
from routershift import RouterTap, router_shift, rspo_loss
gamma = router_shift(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
print(rspo_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2), gamma).item())
print([name for name in ("redis", "grpc", "google", "pydantic", "transformers") if importlib.util.find_spec(name)])
"""
    ran = python(installed, "-c", code)
    assert (ran.stdout, ran.returncode) == ("-1.0\n[]\n", 0), ran.stderr


def test_without_extras_there_are_clients_and_settings_and_errors_name_what_lacks(small: Small) -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    installed = small(*project["dependencies"])
    ran = python(installed, "-c", "from shared.clients import GenerationClient, RewardClient, LearnerClient")
    assert ran.returncode == 0, ran.stderr
    refused = "from routershift.client import GenerationClient as C\nC('127.0.0.1:1', timeout=0.2).status()"
    assert "routershift.errors.DeadlineError: GenerationServiceGetStatus: " in python(installed, "-c", refused).stderr
    command = ("-P", "-m", "services.cli.main")
    for arguments in (["--help"], ["--version"], ["settings", "learner.optimizer"]):
        ran = python(installed, *command, *arguments)
        assert ran.returncode == 0, ran.stderr
    for arguments in (["status", "first"], ["run", "recipe.toml"], ["up"], ["serve", "reward"], ["doctor"], ["score"]):
        ran = python(installed, *command, *arguments)
        assert ran.returncode == 2, ran.stderr
        lacks = r"needs the package \w+: pip install 'routershift\[(services|local)\]'\n"
        assert re.fullmatch(f"routershift: the command {arguments[0]} {lacks}", ran.stderr), ran.stderr
    ran = python(installed, "-c", "import routershift; routershift.RouterTap")
    assert ran.stderr.endswith("RouterTap needs the package torch: pip install 'routershift[learner]'\n")


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
