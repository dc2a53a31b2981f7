"""How fast a part is on this machine, measured; without NAME, what can be measured.

A bench is a module of tests/bench with two functions: `add_arguments(parser)` and `run(arguments)`, which gives what
it measured as a dictionary fit for JSON, and `QUICK`: the defaults that --quick changes. It tells on stderr how far it
is. Its name has a dash where that of its file has an underscore.
"""

import argparse
import ast
import importlib
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.errors import NotFoundError, PreconditionError
from shared.process.exits import EXIT_FAILURE, EXIT_OK
from shared.tracking import records

REPOSITORY = Path(__file__).parents[3]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bench", nargs="?", metavar="NAME", help="what to measure; default: list what can be")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...", help="--json and those of the bench")


def run(arguments: argparse.Namespace) -> int:
    """EXIT_FAILURE where the bench says that a part of it failed."""
    return EXIT_FAILURE if bench(arguments.bench, arguments.options).get("failed") else EXIT_OK


def bench(name: str | None, options: Sequence[str], repository: Path = REPOSITORY) -> dict[str, Any]:
    """Runs a bench, prints what it measured and gives it.

    It prints a table, or with --json one object as the last line of stdout; without a name, what there is.

    Raises:
        PreconditionError: the benches are not here, as the package was installed without its repository.
        NotFoundError: no bench has this name.
    """
    known = benches(repository)
    if name is None:
        for bench_name, description in known.items():
            print(f"{bench_name:<16} {description}")
        return {}
    name = name.replace("_", "-")
    if name not in known:
        raise NotFoundError(f"no bench is named {name!r}; there are: {', '.join(known)}")
    if str(repository) not in sys.path:
        sys.path.insert(0, str(repository))
    module = importlib.import_module(f"tests.bench.{name.replace('-', '_')}")
    parser = argparse.ArgumentParser(prog=f"routershift bench {name}", description=known[name])
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: to see that it runs, not to compare")
    module.add_arguments(parser)
    if "--quick" in options:
        parser.set_defaults(**module.QUICK)
    arguments = parser.parse_args(options)
    result = {**module.run(arguments), "machine": machine(repository)}
    if arguments.json:
        print(records.dumps(result))
    else:
        rows = list(_rows(result))
        width = max(len(key) for key, _ in rows)
        for key, value in rows:
            print(f"{key:<{width}}  {value}")
    return result


def benches(repository: Path) -> dict[str, str]:
    """The benches by name, each with the first line of its docstring."""
    folder = repository / "tests" / "bench"
    if not folder.is_dir():
        raise PreconditionError(
            f"benches are in the repository, and {repository} is not one; clone RouterShift and `make install` there"
        )
    found = {}
    for path in sorted(folder.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in tree.body):
            found[path.stem.replace("_", "-")] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def machine(repository: Path) -> dict[str, Any]:
    """What the numbers depend on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": _cpu(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "commit": _commit(repository),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            return value.strip()
    return platform.machine()


def _commit(repository: Path) -> str | None:
    """None outside of a git checkout; `-dirty` where files differ from it."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=30)
    except FileNotFoundError:
        return None
    return found.stdout.strip() or None


def _rows(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _rows(inner, f"{key} {name}".strip())
    else:
        values = value if isinstance(value, (list, tuple)) else [value]
        yield key, " ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)
