"""Packages of other people, installed for one test: modules with entry points, on the path of imports."""

import importlib
import sys
from pathlib import Path
from typing import Self

import pytest


class Site:
    """A folder on the path of imports, here and in child processes, as site-packages is."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._modules: set[str] = set()
        monkeypatch.syspath_prepend(str(folder))
        monkeypatch.setenv("PYTHONPATH", str(folder))

    def install(self, group: str, entry: str, module: str, source: str) -> None:
        """A package of one module.

        Args:
            group: of the entry point, such as routershift.tasks.
            entry: a line such as `parity = my_parity:Parity`.
        """
        self._modules.add(module)
        (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module.replace('_', '-')}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
        importlib.invalidate_caches()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        for name in [name for name in sys.modules if name in self._modules]:
            del sys.modules[name]
