"""The tests' end of a run of tests. The program is not in this process, and not in this sandbox.

Names that a test uses and does not define are asked of the program. A function or class of the program is a `Remote`:
calling it sends the arguments as data and gets data back. So what a test compares is compared here, by Python's own
types, and the program has no hand in it:

- A test passes only through values that the program returned without having seen what they are compared with.
  Exiting early, printing, patching builtins or reading memory reaches the program's own process only.
- What is no plain data stays there, as another `Remote`. It is never equal to data, does no arithmetic with data, and
  answers none of the yes-or-no questions of the plain types (`startswith`, `isdigit`, ...), since it would be told
  what to agree with. Two Remotes are compared by the program: a test about its own classes trusts its `__eq__`.
- A module of the standard library that a test uses as `math.isclose` is the real one. Any other helper that it neither
  defines nor imports is the program's.
- A test that asks the program yes or no (`assert is_prime(7)`, `assert stack.empty()`) gets the program's answer.

Limits: the module of the program is not importable, `isinstance` and `except` do not know its classes, and arguments
are copies that are written back after the call at their top level.
"""

import ast
import builtins
import importlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from services.reward.sandbox.cell.remote import Program, ProgramEndedError, UnfitTestError


def run(
    link: socket.socket, folder: str, tests: Sequence[str], entry_point: str, report: Callable[[str], object]
) -> None:
    """Runs the tests in order, in one namespace; reports {"passed": bool} or {"unfit": why} for each, as JSON.

    Args:
        entry_point: a function of the program that tests know as `candidate`; may be empty.
    """
    program = Program(link)
    nodes = [node for test in tests for node in ast.walk(ast.parse(test))]
    used = {node.id for node in nodes if isinstance(node, ast.Name)} - set(dir(builtins))
    asked = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    modules = (asked & sys.stdlib_module_names) - {entry_point}
    names: dict[str, Any] = {name: importlib.import_module(name) for name in sorted(modules)}
    try:
        names |= program.start(sorted((used | {entry_point}) - modules))
    except (ProgramEndedError, Exception):  # the program does not even load
        program.alive = False
    if entry_point in names:
        names["candidate"] = names[entry_point]
    if missing := sorted(_imported(nodes)):
        report(json.dumps({"unfit": f"it imports {', '.join(missing)}, which the sandbox does not have"}))
        return
    for index, test in enumerate(tests):
        report(json.dumps(_one(Path(folder, f"test_{index}.py"), test, names, program)))


def _imported(nodes: Iterable[ast.AST]) -> set[str]:
    """The modules that tests import and that are not there."""
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name for name in names if name.partition(".")[0] not in sys.stdlib_module_names}


def _one(path: Path, test: str, names: dict[str, Any], program: "Program") -> dict[str, Any]:
    path.write_text(test, encoding="utf-8", errors="replace")
    module = ModuleType(path.stem)
    reserved = set(vars(module))
    vars(module).update(names)
    try:
        SourceFileLoader(path.stem, str(path)).exec_module(module)
    except UnfitTestError as error:
        return {"unfit": str(error)}
    except BaseException:  # a test fails by whatever it raises
        return {"passed": False}
    finally:
        names.update({name: value for name, value in vars(module).items() if name not in reserved})
    return {"passed": program.alive}


def main(link: socket.socket, folder: str, tests: Sequence[str], entry_point: str) -> None:
    """As a program: reports on what was stdout, where no print of a test can reach it."""
    sys.path.insert(0, folder)
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    run(link, folder, tests, entry_point, lambda line: reports.write(f"{line}\n"))
