"""Code: does the program in the response do what the cases or tests say? It runs in a sandbox; see reward/sandbox.py.

What decides never enters the program's sandbox. Outputs are compared here with what was expected. Tests run in a
sandbox of their own and get plain data from the program's (cell/tests.py says what that guarantees, and what not).
"""

import ast
import json
import logging
import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from services.reward.sandbox.cell.limits import Limits
from services.reward.sandbox.cells import Cells, CellSettings
from services.reward.verifiers.base import Item, Verdict, Verifier, VerifierSettings
from shared.errors import InvalidInputError, PreconditionError

log = logging.getLogger(__name__)

# The last block counts: earlier ones are drafts. A response that was cut off has no closing fence.
_BLOCK = re.compile(r"```[ \t]*[\w+#.-]*[ \t]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)
_THOUGHTS = "</think>"

_EXPECTED = "{'cases': [{'input': text, 'output': text}, ...]} or {'tests': [Python, ...]}"


class CodeSettings(VerifierSettings):
    """Seconds and sizes are of one program, all its cases together."""

    seconds: float = Field(
        6.0,
        gt=0,
        description="time of a program for all its cases; past it, the rest is wrong. Keep it 2 below timeout_seconds",
    )
    memory_mb: int = Field(256, ge=64, description="address space of each process of a program, in MiB")
    processes: int = Field(8, ge=1, description="processes and threads that a program may have")
    scratch_mb: int = Field(16, ge=1, description="size of its /tmp, and of a file, in MiB")
    output_kb: int = Field(1024, ge=1, description="what it may print for a case, in KiB")
    max_characters: int = Field(65536, ge=1, description="length of a program; a longer one is wrong")
    partial: bool = Field(False, description="the reward is the share of what passed, not all or nothing")
    command: tuple[str, ...] = Field(
        (), description='another language: its command, e.g. ["ruby", "{file}"]; for cases with input and output only'
    )
    file: str = Field("main.py", pattern=r"^[\w.-]+$", description="name of the program's file, for the command")
    folders: tuple[Path, ...] = Field((), description="what programs may read beside the system's folders")
    isolation: Literal["namespaces", "none"] = Field(
        "namespaces", description='"none" runs programs as this user with this network: only for those you trust'
    )
    waiting: int = Field(3, ge=1, description="sandboxes that are kept prepared, for each worker process")


class CodeVerifier(Verifier):
    """Reference: {"cases": [{"input": "1 2\\n", "output": "3\\n"}, ...]} or {"tests": ["assert add(1, 2) == 3", ...]}.

    The program is the last fenced block of the response, or all of it. A case passes if the program ends well and
    prints the output, trailing white space aside. Tests run in order; `tests` may also be one string, and
    `entry_point` may name the function that they call `candidate`.
    """

    name: ClassVar[str] = "code"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "a program that passes cases of input and output, or tests, in a sandbox"
    Settings: ClassVar[type[VerifierSettings]] = CodeSettings

    settings: CodeSettings

    def __init__(self, settings: VerifierSettings) -> None:
        super().__init__(settings)
        self._isolated = self.settings.isolation == "namespaces"
        if not self._isolated:
            log.warning(
                'CODE RUNS WITHOUT ISOLATION: with isolation = "none" a program can read every file of this user and '
                "reach the network"
            )

    def start(self) -> None:
        """Raises PreconditionError where programs cannot be isolated and `isolation` is not "none"."""
        s = self.settings
        limits = Limits(s.memory_mb, s.processes, s.scratch_mb, s.output_kb, s.seconds)
        self._cells = Cells(CellSettings(limits, self._isolated, [str(folder) for folder in s.folders]), s.waiting)
        verdict = self.verify(Item("", "print(6 * 7)", {"cases": [{"input": "", "output": "42"}]}))
        if not (verdict.parts["correct"] or s.command):
            self.close()
            raise PreconditionError("a program that prints 42 does not run in the sandbox here; see the service's log")

    def close(self) -> None:
        self._cells.close()

    def verify(self, item: Item) -> Verdict:
        cases, tests, entry_point = _read_reference(item.reference)
        program = extract(item.response)
        if tests and self.settings.command:
            raise InvalidInputError("reference has tests, which are Python's; a verifier with a command takes cases")
        if len(program) > self.settings.max_characters:
            passed = []
        else:
            passed = self._run_tests(program, tests, entry_point) if tests else self._run_cases(program, cases)
        share = sum(passed) / len(cases or tests)
        correct = float(share == 1)
        return Verdict(share if self.settings.partial else correct, {"correct": correct, "passed": share})

    def _run_cases(self, program: str, cases: Sequence[Mapping[str, str]]) -> list[bool]:
        """Whether each case passes; up to the first that does not, if only all of them count."""
        passed: list[bool] = []
        with self._cells.take() as cell:
            inputs = [case["input"] for case in cases]
            cell.give(["programs", program, self.settings.file, list(self.settings.command), inputs])
            for case in cases:
                _, output, end, code = cell.take()
                passed.append(end == "exit" and code == 0 and _lines(output) == _lines(case["output"]))
                if not (passed[-1] or self.settings.partial):
                    break
        return passed

    def _run_tests(self, program: str, tests: Sequence[str], entry_point: str) -> list[bool]:
        ours, theirs = socket.socketpair()
        with self._cells.take() as solution, self._cells.take() as judge:
            with ours, theirs:
                solution.give(["solution", program], ours)
                judge.give(["tests", list(tests), entry_point], theirs)
            _, lines, _ = judge.take()
        reports = [json.loads(line) for line in lines.splitlines() if line.endswith("}")]
        for report in reports:
            if "unfit" in report:
                raise InvalidInputError(f"a test cannot be judged: {report['unfit']}")
        return [report["passed"] for report in reports]


def extract(response: str) -> str:
    """The program of a response: the last fenced block of what follows the thoughts, or all of that."""
    answer = response.rpartition(_THOUGHTS)[2]
    blocks: list[str] = _BLOCK.findall(answer)
    return blocks[-1] if blocks else answer


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _read_reference(reference: Mapping[str, Any]) -> tuple[list[Mapping[str, str]], list[str], str]:
    """Cases, tests and the entry point; either cases or tests are there."""
    cases, tests, entry_point = reference.get("cases", []), reference.get("tests", []), reference.get("entry_point", "")
    tests = [tests] if isinstance(tests, str) else tests
    whole = isinstance(cases, list) and isinstance(tests, list) and isinstance(entry_point, str)
    if not (
        whole
        and bool(cases) != bool(tests)
        and all(isinstance(c, dict) and isinstance(c.get("input"), str) for c in cases)
        and all(isinstance(c.get("output"), str) for c in cases)
        and all(isinstance(test, str) for test in tests)
    ):
        raise InvalidInputError(f"reference of code is {str(dict(reference))[:200]}; expected {_EXPECTED}")
    for test in tests:
        try:
            ast.parse(test)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise InvalidInputError(f"reference of code has a test that is no Python: {error}") from None
    return cases, tests, entry_point
