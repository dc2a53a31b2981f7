"""The layout keeps its rules: who imports whom, how long a file is, and how a docstring begins."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = {
    file.relative_to(ROOT): file.read_text()
    for folder in ("proto", "services", "shared", "deploy", "tests")
    for file in sorted((ROOT / folder).rglob("*.py"))
    if not file.is_relative_to(ROOT / "proto/routershift/v1")  # generated
}
TREES = {path: ast.parse(text) for path, text in SOURCES.items()}
CODE = [path for path in SOURCES if path.parts[0] in ("proto", "services", "shared")]
ABOVE = {"cli", "planner"}  # parts of services/ that read the services and are read by none
LINES = 300
REASON = "Long because "  # begins the sentence that a longer file needs in its docstring


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth, by its full name."""
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(path.parts[: -node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))


def layer(module: str) -> int | None:
    """How high a module stands: the library, shared, services, and what stands above these; None for other packages."""
    first, *rest = module.split(".")
    if first == "services":
        return 3 if rest[:1] and rest[0] in ABOVE else 2
    return {"routershift": 0, "shared": 1, "tests": 4, "deploy": 4}.get(first)


def dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removeprefix("proto.")


def test_imports_never_run_upward() -> None:
    upward = [
        f"{path} imports {module}"
        for path in CODE
        for module in imports(path)
        if (layer(module) or 0) > (layer(dotted(path)) or 0)
    ]
    assert upward == []


def test_services_do_not_import_each_other() -> None:
    others = [
        f"{path} imports {module}"
        for path in CODE
        if path.parts[0] == "services" and path.parts[1] not in ABOVE
        for module in imports(path)
        if module.startswith("services.") and module.split(".")[1] != path.parts[1]
    ]
    assert others == []


def test_no_test_module_imports_another() -> None:
    """What they share is in tests/support; the harnesses of tests/bench and tests/chaos may be used by tests too."""
    module = re.compile(r"\btests(\.\w+)*\.(test_\w+|conftest)\b")
    found = [f"{path}: {match[0]}" for path, text in SOURCES.items() if (match := module.search(text))]
    assert found == []


def test_what_tests_share_imports_no_tests() -> None:
    found = [
        f"{path} imports {module}"
        for path in SOURCES
        if path.parts[:2] == ("tests", "support")
        for module in imports(path)
        if module.startswith("tests.") and not module.startswith("tests.support")
    ]
    assert found == []


def test_a_long_file_says_why() -> None:
    long = {path: lines for path, text in SOURCES.items() if (lines := text.count("\n")) > LINES}
    silent = [path for path in long if REASON not in (ast.get_docstring(TREES[path]) or "")]
    assert silent == [], f"split them, or add a sentence to their docstring that begins with {REASON!r}"


def test_the_first_line_of_a_docstring_stands_alone() -> None:
    """One that begins with "Of" can only be read as the end of a name."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        f"{path}: {doc}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, kinds) and (doc := ast.get_docstring(node)) and re.match(r"of\b", doc, re.IGNORECASE)
    ]
    assert found == []
