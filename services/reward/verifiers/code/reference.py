"""What a task says of the right program: read from its reference, and checked as far as it can be without a program."""

import ast
import builtins
import json
import symtable
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from services.reward.verifiers.code.rows import FORMS, Cases, PythonTests, Task, read_row
from shared.errors import InvalidInputError
from shared.sandbox.inside.namespaces import MAX_INPUT_MB
from shared.sandbox.inside.solution import MODULE

_MAX_BYTES = MAX_INPUT_MB << 20


def read(reference: Mapping[str, Any], python: bool = True) -> Task:
    """Reads a reference.

    Args:
        python: programs are Python; of another language, only what they print can be judged.

    Raises:
        InvalidInputError: it has none of the forms, more than one, too much, or tests that test nothing.
    """
    try:
        task = read_row(reference)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise InvalidInputError(
            f"reference of code is {str(dict(reference))[:200]}; expected {FORMS}. {why[:200]}"
        ) from None
    if not (python or isinstance(task, Cases)):
        raise InvalidInputError("reference has tests, which are Python's; a verifier with a command takes cases")
    size = sum(len(text.encode(errors="replace")) for text in _texts(task))
    if size > _MAX_BYTES:
        raise InvalidInputError(
            f"reference of code has {size} bytes for the program to read; at most {_MAX_BYTES} ({MAX_INPUT_MB} MiB)"
        )
    if isinstance(task, PythonTests):
        return _checked(task)
    if isinstance(task, Cases) and task.checker:
        _parse(task.checker, "a checker")
        if "check" not in _defined(task.checker):
            raise InvalidInputError("reference of code has a checker that does not define check(input, output, answer)")
    return task


def _texts(task: Task) -> Iterator[str]:
    if isinstance(task, Cases):
        yield from (case.input for case in task.cases)
    elif isinstance(task, PythonTests):
        yield from task.sources
    else:
        yield json.dumps(task.calls)


def _checked(tests: PythonTests) -> PythonTests:
    """With the call of `check` that rows of HumanEval leave to their reader.

    Raises:
        InvalidInputError: they are no Python, or cannot call the program, whatever the program is.
    """
    for source in tests.sources:
        _parse(source, "a test")
    try:
        ast.parse(tests.entry_point or "none", mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidInputError(f"reference of code has entry_point = {tests.entry_point[:200]!r}: {error}") from None
    nodes = [node for source in tests.sources for node in ast.walk(ast.parse(source))]
    defined = any(isinstance(n, ast.FunctionDef) and n.name == "check" for n in nodes)
    called = any(isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "check" for n in nodes)
    if tests.entry_point and defined and not called:
        tests = replace(tests, sources=[*tests.sources[:-1], f"{tests.sources[-1]}\n\ncheck(candidate)\n"])
    if not any(_free(tests.sources)):
        raise InvalidInputError(
            "reference of code has tests that never call the program: they use no name that they do not define, and "
            "import nothing from solution; for a test that defines check(candidate), give entry_point"
        )
    return tests


def _free(sources: Sequence[str]) -> Iterator[str]:
    """Names that tests use and do not define."""
    used: set[str] = set()
    bound: set[str] = set(dir(builtins)) | {"__name__", "__file__", "__doc__"}
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module == MODULE:
                yield MODULE
            if isinstance(node, ast.Import) and any(alias.name == MODULE for alias in node.names):
                yield MODULE
        tables = [symtable.symtable(source, "<test>", "exec")]
        while tables:
            table = tables.pop()
            tables += table.get_children()
            for symbol in table.get_symbols():
                if table.get_type() == "module" and (symbol.is_assigned() or symbol.is_imported()):
                    bound.add(symbol.get_name())
                elif symbol.is_referenced() and (symbol.is_global() or table.get_type() == "module"):
                    used.add(symbol.get_name())
    yield from used - bound


def _defined(source: str) -> set[str]:
    """Names that it binds at its top level."""
    symbols = symtable.symtable(source, "<reference>", "exec").get_symbols()
    return {symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()}


def _parse(source: str, what: str) -> None:
    try:
        ast.parse(source)
        compile(source, "<reference>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidInputError(f"reference of code has {what} that is no Python: {error}") from None
