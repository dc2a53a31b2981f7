"""`from routershift import ...`: what it gives, and what it needs."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import routershift

PROTO = Path(__file__).parents[3] / "proto"
BLOCKED = ("redis", "grpc", "google", "pydantic", "prometheus_client", "transformers", "services", "shared")
BLOCK = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
sys.path.insert(0, {proto!r})
"""


def python(code: str, blocked: tuple[str, ...], cwd: Path) -> subprocess.CompletedProcess[str]:
    script = BLOCK.format(names=blocked, proto=str(PROTO)) + code
    return subprocess.run(
        [sys.executable, "-c", script], cwd=cwd, capture_output=True, text=True, check=False, timeout=120
    )


def test_it_needs_torch_alone(tmp_path: Path) -> None:
    code = """
import torch
from routershift import RouterTap, router_shift, rspo_loss
gamma = router_shift(torch.zeros(1, 2, 3, 4), torch.full((1, 2, 3, 4), -0.1))
print(rspo_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1), torch.ones(1, 2), gamma).item())
print(sorted({name.partition(".")[0] for name in sys.modules} & {"redis", "grpc", "pydantic", "services", "shared"}))
"""
    done = python(code, BLOCKED, tmp_path)
    assert done.returncode == 0, done.stderr
    loss, modules = done.stdout.splitlines()
    assert float(loss) == pytest.approx(-0.9048, abs=1e-3)  # minus exp(-0.1)
    assert modules == "[]"


def test_folders_named_like_ours_are_the_users(tmp_path: Path) -> None:
    for name in ("services", "shared"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("whose = 'the user'\n")
    done = subprocess.run(
        [sys.executable, "-c", "import services, shared; import routershift as r; r.RouterTap; print(shared.whose)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.stdout, done.returncode) == ("the user\n", 0), done.stderr


@pytest.mark.parametrize("name", routershift.__all__)
def test_without_torch_the_error_names_the_extra(name: str, tmp_path: Path) -> None:
    code = f"""
import routershift.v1, routershift
try:
    routershift.{name}
except routershift.MissingDependencyError as error:
    print(error)
"""
    done = python(code, ("torch",), tmp_path)
    assert done.stdout == f"routershift.{name} needs the package torch: pip install 'routershift[learner]'\n", (
        done.stderr
    )


def test_every_public_name_has_a_docstring_and_is_listed() -> None:
    assert set(routershift.__all__) <= set(dir(routershift))
    for name in routershift.__all__:
        assert getattr(routershift, name).__doc__
    with pytest.raises(AttributeError, match="it has RouterTap"):
        _ = routershift.nothing


def test_the_parts_are_importable_by_the_names_that_pages_use() -> None:
    for module in ("routershift.algorithms.objectives.base", "routershift.routing.families", "routershift.errors"):
        import_module(module)
