"""The tests' end of a run of tests. The program is not in this process, and not in this sandbox.

Names that a test uses and does not define are asked of the program, as is what it imports from `solution`. A function
or class of the program is a `Remote`: calling it sends the arguments as data and gets data back. So what a test
compares is compared here, by Python's own types, and the program has no hand in it:

- A test passes only through values that the program returned without having seen what they are compared with.
  Exiting early, printing, patching builtins or reading memory reaches the program's own process only.
- What is no plain data stays there, as another `Remote`. It is never equal to data, does no arithmetic with data, and
  is not told what to agree with (`rfind`, `difference`, `strip`, ... with an argument, `isdigit`, ...). Two Remotes
  are compared by the program, and an object that the test makes of a class of the program's (by a name with a
  capital) answers what it is asked: a test about the program's own classes trusts them.
- A module of the standard library that a test uses as `math.isclose` is the real one. Any other helper that it neither
  defines nor imports is the program's.
- A test that asks the program yes or no (`assert is_prime(7)`, `assert stack.empty()`) gets the program's answer.

A test is a statement or more, as of MBPP or HumanEval; or test functions, classes named Test... with test methods, and
unittest's TestCases, each of whose methods counts as one. Tests that pass without having used the program are unfit.

Limits: `isinstance` and `except` do not know the program's classes, arguments are copies that are written back after
the call at their top level, and there is no pytest.
"""

import ast
import builtins
import contextlib
import importlib
import inspect
import json
import os
import socket
import sys
import unittest
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from functools import partial
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from shared.sandbox.inside.comparison import same_value
from shared.sandbox.inside.remote import Program, ProgramEndedError
from shared.sandbox.inside.solution import MODULE

_Test = Callable[[], object]


def run(link: socket.socket, folder: str, sources: Sequence[str], entry_point: str) -> None:
    """Runs the tests in order, in one namespace.

    Prints JSON on what was stdout, a line each: {"of": how many tests a source has} before it, {"passed": bool} for
    each test, and {"unfit": why} where one cannot be judged.

    Args:
        entry_point: what of the program tests know as `candidate`: a name, or an expression; may be empty.
    """
    report = _reporter()
    sys.path.insert(0, folder)
    program = Program(link)
    nodes = [node for source in (*sources, entry_point) for node in ast.walk(ast.parse(source))]
    if missing := sorted(_imported(nodes)):
        report({"unfit": f"it imports {', '.join(missing)}, which the sandbox does not have"})
        return
    names = _names(nodes, entry_point)
    unittest.main = _ignore  # type: ignore[assignment]  # all TestCases are run, whether a test asks for it or not
    try:
        program.start()
        wanted = (_used(nodes) - set(dir(builtins))) | _used(ast.walk(ast.parse(entry_point)))
        names |= program.names(sorted(wanted - names.keys()))
    except (ProgramEndedError, Exception):  # the program does not even load
        program.alive = False
    sys.modules[MODULE] = _Solution(program)
    if entry_point and program.alive:
        names |= _candidate(entry_point, names)
        program.uses = 0
    passed = True
    for index, source in enumerate(sources):
        for entry in _source(Path(folder, f"test_{index}.py"), source, names, program):
            passed &= entry.get("passed", True)
            report(entry)
            if program.unfit:
                report({"unfit": program.unfit})
                return
    if passed and program.alive and not program.uses:
        report({"unfit": "it never calls the program"})


def call(link: socket.socket, name: str, calls: Sequence[Any], tolerance: float) -> None:
    """Calls a function, or the method of a class `Solution`, with arguments, and compares; reports as `run` does.

    Args:
        calls: pairs of arguments and of values, any of which is right.
    """
    report = _reporter()
    program = Program(link)
    report({"of": len(calls)})
    try:
        program.start()
        found = program.names([name, "Solution"])
    except (ProgramEndedError, Exception):  # the program does not even load
        found = {}
    for arguments, expected in calls:
        passed = False
        with contextlib.suppress(ProgramEndedError, Exception):  # it has no such function, or raises
            function = found[name] if name in found else getattr(found["Solution"](), name)
            value = function(*arguments)
            passed = any(same_value(value, each, tolerance) for each in expected)
        report({"passed": passed and program.alive})


class _Solution(ModuleType):
    """The module `solution`, as tests import it."""

    def __init__(self, program: Program) -> None:
        super().__init__(MODULE)
        vars(self).update(_program=program)

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":
            public = self._program.names(None)
            vars(self).update(public)
            return list(public)
        if name.startswith("__"):
            raise AttributeError(name)
        found: dict[str, Any] = self._program.names([name])
        if name not in found:
            raise AttributeError(name)
        return found[name]


def _reporter() -> Callable[[dict[str, Any]], None]:
    """Where no print of a test can reach it."""
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    return lambda entry: print(json.dumps(entry), file=reports)


def _ignore(*_: Any, **__: Any) -> None:
    pass


def _names(nodes: Sequence[ast.AST], entry_point: str) -> dict[str, Any]:
    """Modules that tests use as `math.isclose` without importing them."""
    asked = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    modules = (asked & sys.stdlib_module_names) - {entry_point}
    return {name: importlib.import_module(name) for name in sorted(modules)}


def _used(nodes: Iterable[ast.AST]) -> set[str]:
    return {node.id for node in nodes if isinstance(node, ast.Name)}


def _candidate(entry_point: str, names: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"candidate": eval(entry_point, dict(names))}  # noqa: S307  # of the task, and in the sandbox
    except (ProgramEndedError, Exception):  # the program has no such thing
        return {}


def _imported(nodes: Iterable[ast.AST]) -> set[str]:
    """The modules that tests import and that are not there."""
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {name for name in names if name.partition(".")[0] not in (MODULE, *sys.stdlib_module_names)}


def _source(path: Path, source: str, names: dict[str, Any], program: Program) -> Iterator[dict[str, Any]]:
    path.write_text(source, encoding="utf-8", errors="replace")
    module = sys.modules[path.stem] = ModuleType(path.stem)
    reserved = set(vars(module))
    vars(module).update(names)
    loaded = _passes(lambda: SourceFileLoader(path.stem, str(path)).exec_module(module), program)
    names.update({name: value for name, value in vars(module).items() if name not in reserved})
    tests = list(_tests(module, program)) if loaded else []
    yield {"of": max(len(tests), 1)}
    if not tests:
        yield {"passed": loaded}
    for test in tests:
        yield {"passed": _passes(test, program)}


def _passes(test: _Test, program: Program) -> bool:
    try:
        test()
    except BaseException:  # a test fails by whatever it raises
        return False
    return program.alive


def _tests(module: ModuleType, program: Program) -> Iterator[_Test]:
    """What the module defines to be run: test functions, classes of test methods, TestCases."""
    for name, value in list(vars(module).items()):
        if getattr(value, "__module__", None) != module.__name__ or type(value) not in (FunctionType, type):
            continue
        if isinstance(value, FunctionType):
            if name.startswith("test") and _takes_nothing(value, program):
                yield partial(_awaited, value) if inspect.iscoroutinefunction(value) else value
        elif issubclass(value, unittest.TestCase):
            yield from _cases(value)
        elif name.startswith("Test"):
            for method in (n for n in dir(value) if n.startswith("test") and callable(getattr(value, n))):
                yield _method(value, method)


def _awaited(function: Callable[[], Coroutine[Any, Any, object]]) -> None:
    import asyncio  # takes longer to load than most tests to run

    asyncio.run(function())


def _takes_nothing(function: FunctionType, program: Program) -> bool:
    needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    if needed:
        program.unfit = f"{function.__name__} wants {', '.join(needed)}, which only pytest would give"
    return not needed


def _cases(kind: type[unittest.TestCase]) -> Iterator[_Test]:
    """One test for each method; the class is set up for each of them."""
    for name in unittest.defaultTestLoader.getTestCaseNames(kind):
        yield lambda name=name: _unittest(unittest.TestSuite([kind(name)]))  # type: ignore[misc]


def _unittest(suite: unittest.TestSuite) -> None:
    result = unittest.TestResult()
    suite.run(result)
    if not result.wasSuccessful():
        raise AssertionError([text for _, text in (*result.failures, *result.errors)])


def _method(kind: type, name: str) -> _Test:
    def test() -> None:
        made = kind()
        for step in ("setup_method", name, "teardown_method"):
            if step == name or hasattr(made, step):
                getattr(made, step)()

    return test
