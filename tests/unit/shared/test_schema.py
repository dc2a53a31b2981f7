"""The schema: linted, compatible with its baseline, and the generated code is what it generates."""

import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


def buf(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "buf", *arguments], cwd=repository, capture_output=True, text=True, timeout=60)


def test_buf_lint(repository: Path) -> None:
    result = buf(repository, "lint", "proto")
    assert result.returncode == 0, result.stdout


def test_nothing_breaks_the_baseline(repository: Path) -> None:
    result = buf(repository, "breaking", "proto", "--against", "proto/baseline.binpb")
    assert result.returncode == 0, result.stdout


def test_the_breaking_check_can_fail(repository: Path, tmp_path: Path) -> None:
    folder = tmp_path / "proto"
    package = folder / "routershift/v1"
    package.mkdir(parents=True)
    (folder / "buf.yaml").write_text((repository / "proto/buf.yaml").read_text())
    for file in (repository / "proto/routershift/v1").glob("*.proto"):
        (package / file.name).write_text(file.read_text().replace("int64 version = 1;", "string version = 1;"))
    result = buf(tmp_path, "breaking", "proto", "--against", str(repository / "proto/baseline.binpb"))
    assert result.returncode != 0
    assert "changed type" in result.stdout


@pytest.mark.parametrize("name", ["trajectory", "generation", "reward", "learner"])
def test_generated_code_is_current(repository: Path, tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", f"--python_out={tmp_path}"]
    command += [f"--grpc_python_out={tmp_path}"] if name != "trajectory" else []
    subprocess.run([*command, f"proto/routershift/v1/{name}.proto"], cwd=repository, check=True, timeout=60)
    made = list(tmp_path.rglob("*.py"))
    assert made
    for file in made:
        committed = repository / "proto" / file.relative_to(tmp_path)
        assert file.read_text() == committed.read_text(), f"{committed} is not current; run make proto"


def test_descriptors_with_comments_are_current(repository: Path, tmp_path: Path) -> None:
    """What reflection tells."""
    out = tmp_path / "schema.binpb"
    files = sorted(str(file.relative_to(repository)) for file in (repository / "proto/routershift/v1").glob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", "proto", "--include_source_info"]
    subprocess.run([*command, f"--descriptor_set_out={out}", *files], cwd=repository, check=True, timeout=60)
    committed = repository / "proto/routershift/v1/schema.binpb"
    assert out.read_bytes() == committed.read_bytes(), f"{committed} is not current; run make proto"


@pytest.mark.parametrize("name", ["trajectory", "generation", "reward", "learner"])
def test_other_languages_know_where_the_package_goes(repository: Path, name: str) -> None:
    assert "option go_package = " in (repository / f"proto/routershift/v1/{name}.proto").read_text()
