"""The messages in the code: every literal string, with an ellipsis for each value that is put in."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
_PACKAGES = ("services", "shared", "proto/routershift")


def messages() -> set[str]:
    """All strings of the packages; a value, or a part that depends on one, is "…"."""
    return {text for package in _PACKAGES for file in sorted((ROOT / package).rglob("*.py")) for text in _of(file)}


def _of(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
