"""The forms of references: our own, and the rows of data sets as they are."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, get_args

from shared.sandbox.inside.comparison import Comparison

FORMS = (
    "{'cases': [{'input': text, 'output': text}, ...]} or {'tests': [Python, ...]}, or a row of a data set: "
    "{'inputs': [...], 'outputs': [...]} with 'fn_name' for a function, {'input_output': JSON}, "
    "{'public_test_cases': JSON}, {'ground_truth': JSON}, {'test': Python}, {'test_list': [Python, ...]}"
)


@dataclass(frozen=True)
class Case:
    """An input, and the outputs of which any is right; none where a checker needs none."""

    input: str
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class Cases:
    """Runs on stdin and stdout. `checker` is a Python program that defines check(input, output, answer)."""

    cases: Sequence[Case]
    comparison: Comparison | None = None  # None: as the verifier is set
    checker: str = ""

    def __len__(self) -> int:
        return len(self.cases)


@dataclass(frozen=True)
class Calls:
    """Calls of a function: arguments, and the values of which any is right."""

    function: str
    calls: Sequence[tuple[list[Any], list[Any]]]

    def __len__(self) -> int:
        return len(self.calls)


@dataclass(frozen=True)
class PythonTests:
    """Python that calls the program. `beginning` is what the prompt gave of it, for a response that goes on there."""

    sources: Sequence[str]
    entry_point: str = ""
    beginning: str = ""

    def __len__(self) -> int:
        return len(self.sources)


Task = Cases | Calls | PythonTests


def read_row(reference: Mapping[str, Any]) -> Task:
    """Reads a reference by its form. Raises ValueError, TypeError and other errors of what is no such form."""
    found = {name: read for name, read in _READERS.items() if reference.get(name)}
    # These are of one row: a form with its supplement.
    for form, others in _TOGETHER.items():
        if form in found:
            found = {name: read for name, read in found.items() if name not in others}
    if len(found) != 1:
        raise ValueError(f"it has {' and '.join(found) or 'none of the forms'}")
    ((name, reader),) = found.items()
    return reader(reference[name], reference)


def _own_cases(value: Any, row: Mapping[str, Any]) -> Cases:
    comparison, checker = row.get("comparison"), row.get("checker", "")
    if comparison is not None and comparison not in get_args(Comparison):
        raise ValueError(f"comparison is {comparison!r}; known: {', '.join(get_args(Comparison))}")
    _expect(isinstance(value, list), "cases are no list")
    cases = [Case(_text(case["input"], "input"), _outputs(case, bool(checker))) for case in value]
    return Cases(cases, comparison, _text(checker, "checker"))


def _outputs(case: Mapping[str, Any], checked: bool) -> tuple[str, ...]:
    output = case.get("output") if checked else case["output"]
    if output is None:
        return ()
    outputs = output if isinstance(output, list) else [output]
    _expect(bool(outputs), "output is an empty list")
    return tuple(_text(each, "output") for each in outputs)


def _own_tests(value: Any, row: Mapping[str, Any]) -> PythonTests:
    sources = [value] if isinstance(value, str) else value
    _expect(isinstance(sources, list), "tests are no list")
    entry_point = _text(row.get("entry_point", ""), "entry_point")
    prompt = row.get("prompt")
    beginning = prompt if isinstance(prompt, str) and f"def {entry_point}(" in prompt else ""
    return PythonTests([_text(source, "a test") for source in sources], entry_point, beginning)


def _mbpp(value: Any, row: Mapping[str, Any]) -> PythonTests:
    """MBPP: `test_list` with `test_setup_code` or `test_imports`."""
    imports = row.get("test_imports") or []
    setup = "\n".join([_text(row.get("test_setup_code") or "", "test_setup_code"), *imports]).strip()
    tests = _own_tests([*value, *(row.get("challenge_test_list") or [])], row)
    return PythonTests([f"{setup}\n{source}" if setup else source for source in tests.sources], tests.entry_point)


def _apps(value: Any, row: Mapping[str, Any]) -> Cases | Calls:
    """APPS, TACO, PRIME: lists of `inputs` and `outputs`; with `fn_name`, of arguments and values."""
    inputs, outputs = _json(value), _json(row["outputs"])
    _expect(isinstance(inputs, list) and isinstance(outputs, list), "inputs or outputs are no list")
    _expect(len(inputs) == len(outputs), f"it has {len(inputs)} inputs and {len(outputs)} outputs")
    if name := row.get("fn_name"):
        pairs = [(_arguments(i), _values(o)) for i, o in zip(inputs, outputs, strict=True)]
        return Calls(_text(name, "fn_name"), pairs)
    cases = [Case(_lines(i, "inputs"), (_lines(o, "outputs"),)) for i, o in zip(inputs, outputs, strict=True)]
    return Cases(cases, row.get("comparison", "tokens"), _text(row.get("checker", ""), "checker"))


def _nested(value: Any, row: Mapping[str, Any]) -> Task:
    """`input_output` of APPS and TACO, `ground_truth` of PRIME and others: a row in a row, mostly as JSON."""
    inner = _json(value)
    if isinstance(inner, list):
        return _list(inner, row)
    supplement = {name: row[name] for name in ("comparison", "checker", "entry_point") if name in row}
    return read_row({**supplement, **inner})


def _list(value: Any, row: Mapping[str, Any]) -> Task:
    """A list of asserts, or of cases with {"input", "output"} and perhaps the type or the name of a function."""
    value = _json(value)
    if all(isinstance(each, str) for each in value):
        return _own_tests(value, row)
    names = {name for case in value if (name := _function(case, row))}
    _expect(len(names) <= 1, f"it calls {' and '.join(map(str, names))}")
    if names:
        pairs = [(_arguments(case["input"]), _values(case["output"], wrapped=False)) for case in value]
        return Calls(_text(names.pop(), "func_name"), pairs)
    cases = [Case(_lines(case["input"], "input"), (_lines(case["output"], "output"),)) for case in value]
    return Cases(cases, row.get("comparison", "tokens"), _text(row.get("checker", ""), "checker"))


def _function(case: Mapping[str, Any], row: Mapping[str, Any]) -> Any:
    """The name of the function that a case calls, wherever its data set has it; none for a program on stdin."""
    kind = case.get("testtype") or case.get("type") or ""
    if kind in ("stdin", "stdin_stdout"):
        return None
    for where in (case, _json(case.get("metadata") or {}), row, _json(row.get("metadata") or {})):
        for key in ("fn_name", "func_name"):
            if where.get(key):
                return where[key]
    _expect(kind in ("", "stdin"), f"a case is of type {kind!r} and names no function")
    return None


def _livecodebench(value: Any, row: Mapping[str, Any]) -> Task:
    private = row.get("private_test_cases") or []
    try:
        private = _json(private)
    except ValueError:
        raise ValueError(
            "private_test_cases is packed with pickle, which is never read; unpack it when you make the data set"
        ) from None
    return _list([*_json(value), *private], row)


def _code_contests(_: Any, row: Mapping[str, Any]) -> Cases:
    """CodeContests: {"input": [...], "output": [...]} under three names."""
    groups = [row[name] for name in ("public_tests", "private_tests", "generated_tests") if row.get(name)]
    cases = [
        Case(_text(i, "input"), (_text(o, "output"),))
        for group in groups
        for i, o in zip(group["input"], group["output"], strict=True)
    ]
    _expect(bool(cases), "it has no cases")
    return Cases(cases, row.get("comparison", "tokens"), _text(row.get("checker", ""), "checker"))


_READERS: dict[str, Callable[[Any, Mapping[str, Any]], Task]] = {
    "cases": _own_cases,
    "tests": _own_tests,
    "test": _own_tests,
    "test_list": _mbpp,
    "inputs": _apps,
    "input_output": _nested,
    "ground_truth": _nested,
    "reward_model": lambda value, row: _nested(_json(value)["ground_truth"], row),
    "test_cases": _list,
    "public_test_cases": _livecodebench,
    "private_test_cases": lambda value, row: _livecodebench([], row),
    "public_tests": _code_contests,
    "private_tests": _code_contests,
    "generated_tests": _code_contests,
}
_TOGETHER = {
    "public_test_cases": ("private_test_cases",),
    "public_tests": ("private_tests", "generated_tests"),
    "private_tests": ("generated_tests",),
}


def _arguments(value: Any) -> list[Any]:
    """The arguments of one call: a list, or a text with a line of JSON for each."""
    if isinstance(value, str):
        value = [json.loads(line) for line in value.split("\n") if line.strip()]
    _expect(isinstance(value, list), f"arguments are {repr(value)[:50]}; expected a list")
    return cast(list[Any], value)


def _values(value: Any, wrapped: bool = True) -> list[Any]:
    """What a function may return. APPS wraps some values in a list of one, and does not say which."""
    if isinstance(value, str):
        try:
            return [json.loads(value)] if not wrapped else [value, json.loads(value)]
        except ValueError:
            return [value]
    return [value, value[0]] if wrapped and isinstance(value, list) and len(value) == 1 else [value]


def _json(value: Any) -> Any:
    return json.loads(value) if isinstance(value, str) else value


def _lines(value: Any, what: str) -> str:
    """A text; some rows have its lines in a list."""
    if isinstance(value, list):
        return "\n".join(_lines(each, what) for each in value)
    return str(value) if isinstance(value, int | float) else _text(value, what)


def _text(value: Any, what: str) -> str:
    _expect(isinstance(value, str), f"{what} is {repr(value)[:50]}; expected text")
    return cast(str, value)


def _expect(holds: bool, why: str) -> None:
    if not holds:
        raise ValueError(why)
