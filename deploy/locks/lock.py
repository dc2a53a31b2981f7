"""Writes base.txt, vllm.txt, dev.txt and docs.txt from what is installed in this environment: `make locks`.

Each file holds the exact versions of one set of packages and of everything they need, without what an earlier
file holds that is installed with it; `make install` installs them with --no-deps. So vLLM's wish for torchvision,
torchaudio and torchcodec, whose builds on PyPI need CUDA and break `import transformers` on a CPU, is left out in one
place: here. So is triton, which has no backend for a CPU and costs 70 MB in each process that imports it.
"""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).parent
# redis needs it on a Python older than the one that these files are made with.
BY_VERSION = {"base": ['async-timeout==5.0.1 ; python_full_version < "3.11.3"']}
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "triton"}
IN_BASE = ("services", "learner", "data", "reward", "local", "traces", "gateway", "planner")
WITHOUT = ("vllm", "docs")  # `make docs` does not install vLLM
INSTALLED_FIRST = {"torch"}  # from its own index, see the Makefile
SEPARATE = {"pip", "setuptools"}  # come with the virtual environment or by name


def main() -> None:
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    groups = {
        "base": [*project["dependencies"], *(root for extra in IN_BASE for root in extras[extra])],
        "vllm": extras["vllm"],
        "dev": [*extras["dev"], *extras["reasoning-gym"], *extras["object-store"], *extras["profile"]],
        "docs": extras["docs"],
    }
    locked: dict[str, set[str]] = {}
    for name, roots in groups.items():
        there: set[str] = set().union(*(packages for earlier, packages in locked.items() if (earlier, name) != WITHOUT))
        found = closure([Requirement(root) for root in roots]) - there - INSTALLED_FIRST - SEPARATE
        lines = sorted(
            [*(f"{package}=={distribution(package).version}" for package in found), *BY_VERSION.get(name, [])]
        )
        (HERE / f"{name}.txt").write_text("\n".join(lines) + "\n")
        locked[name] = found


def closure(roots: list[Requirement]) -> set[str]:
    """Normalised names of the roots and of all that they need on this platform."""
    seen: set[tuple[str, str]] = set()
    todo = [(canonical(root.name), extra) for root in roots for extra in ("", *root.extras)]
    while todo:
        name, extra = item = todo.pop()
        if item in seen or name in LEFT_OUT:
            continue
        try:
            requires = distribution(name).requires or []
        except PackageNotFoundError:
            raise SystemExit(f"{name} is not installed; install it before locking") from None
        seen.add(item)
        for line in requires:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                todo += [(canonical(needed.name), e) for e in ("", *needed.extras)]
    return {name for name, _ in seen}


def canonical(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
