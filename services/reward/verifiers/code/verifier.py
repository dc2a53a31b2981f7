"""Code: does the program in the response do what the cases or tests say? It runs in a sandbox; see shared/sandbox.

What decides never enters the program's sandbox. Outputs are compared here with what was expected. Tests run in a
sandbox of their own and get plain data from the program's (inside/tests.py says what that guarantees, and what not).
"""

import ast
import json
import logging
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from services.reward.verifiers.base import CORRECT, Item, Verdict, Verifier, VerifierSettings
from services.reward.verifiers.code.extraction import PYTHON, extract
from services.reward.verifiers.code.reference import read
from services.reward.verifiers.code.rows import FORMS, Calls, Case, Cases, PythonTests, Task
from shared.errors import InvalidInputError, PreconditionError
from shared.sandbox.inside.comparison import Comparison, same_output
from shared.sandbox.inside.limits import Limits
from shared.sandbox.sandbox import Sandboxes, SandboxLostError, SandboxSettings

log = logging.getLogger(__name__)

_MARGIN_SECONDS = 5.0  # before timeout_seconds, at which the worker process would be killed
_LOSSES = 2  # sandboxes that a program loses before that is its own doing


class CodeSettings(VerifierSettings):
    """Seconds and sizes are of one program, all its cases together."""

    timeout_seconds: float = Field(
        60.0,
        gt=0,
        description="deadline of one verification; past it the machine was too busy, and the item has failed",
    )
    seconds: float = Field(
        6.0, gt=0, description="processor time of a program for all its cases; past it, the rest is wrong"
    )
    idle_seconds: float = Field(
        3.0, gt=0, description="time in which it neither runs nor waits for a processor; past it, the rest is wrong"
    )
    memory_mb: int = Field(256, ge=64, description="address space of each process of a program, in MiB")
    processes: int = Field(8, ge=1, description="processes and threads that a program may have")
    scratch_mb: int = Field(16, ge=1, description="size of its /tmp, and of a file, in MiB")
    output_kb: int = Field(1024, ge=1, description="what it may print for a case, in KiB")
    max_characters: int = Field(65536, ge=1, description="length of a program; a longer one is wrong")
    partial: bool = Field(False, description="the reward is the share of what passed, not all or nothing")
    comparison: Comparison = Field(
        "lines",
        description='how outputs of cases are compared: "lines", trailing white space aside, or "tokens", as words and '
        "numbers; a reference may say, and rows of data sets have tokens",
    )
    tolerance: float = Field(
        1e-6, ge=0, description="difference of two numbers that are the same, absolute or relative; not for integers"
    )
    prelude: bool = Field(
        True, description="programs have what LeetCode and LiveCodeBench import for them, where they do not import it"
    )
    command: tuple[str, ...] = Field(
        (), description='another language: its command, e.g. ["ruby", "{file}"]; for cases with input and output only'
    )
    languages: tuple[str, ...] = Field(
        (), description="labels of fenced blocks that are programs; default: those of Python, or with a command all"
    )
    file_name: str = Field("main.py", pattern=r"^[\w.-]+$", description="name of the program's file, for the command")
    folders: tuple[Path, ...] = Field((), description="what programs may read beside the system's folders")
    isolation: Literal["namespaces", "none"] = Field(
        "namespaces", description='"none" runs programs as this user with this network: only for those you trust'
    )
    waiting: int = Field(3, ge=1, description="sandboxes that are kept prepared, for each worker process")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        least = self.seconds + self.idle_seconds + _MARGIN_SECONDS
        if self.timeout_seconds < least:
            raise ValueError(
                f"timeout_seconds is {self.timeout_seconds:g}; at least seconds + idle_seconds + {_MARGIN_SECONDS:g} = "
                f"{least:g} are needed: raise it, or lower the others"
            )
        return self


class CodeVerifier(Verifier):
    """Reference: {"cases": [{"input": "1 2\\n", "output": "3\\n"}, ...]} or {"tests": ["assert add(1, 2) == 3", ...]}.

    Rows of data sets are read as well; see rows.py. The program is the last fenced block of the response that is
    one, or all of it. A case passes if the program ends well and prints the output; `output` may be a list, any of
    which is right, and a `checker` may decide instead. Tests run in order; `tests` may also be one string, and
    `entry_point` may name the function that they call `candidate`.
    """

    name: ClassVar[str] = "code"
    version: ClassVar[str] = "2"
    description: ClassVar[str] = "a program that passes cases of input and output, or tests, in a sandbox"
    thinking: ClassVar[bool] = False
    reference_schema: ClassVar[Mapping[str, Any]] = {"type": "object", "minProperties": 1, "description": FORMS}
    part_names: ClassVar[Mapping[str, str]] = {"correct": CORRECT, "passed": "share of the cases or tests that passed"}
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
        limits = Limits(
            s.memory_mb, s.processes, s.scratch_mb, s.output_kb,
            s.seconds, s.idle_seconds, s.timeout_seconds - _MARGIN_SECONDS,
        )  # fmt: skip
        settings = SandboxSettings(limits, self._isolated, [str(folder) for folder in s.folders])
        self._sandboxes = Sandboxes(settings, s.waiting)
        verdict = self.verify(Item("", "print(6 * 7)", {"cases": [{"input": "", "output": "42"}]}))
        if not (verdict.parts["correct"] or s.command):
            self.close()
            raise PreconditionError("a program that prints 42 does not run in the sandbox here; see the service's log")

    def close(self) -> None:
        self._sandboxes.close()

    def verify(self, item: Item) -> Verdict:
        task = read(item.reference, python=not self.settings.command)
        languages = self.settings.languages or (() if self.settings.command else PYTHON)
        program = extract(item.response, languages, self.text(item))
        if isinstance(task, PythonTests) and not _defines(program, task.entry_point):
            program = task.beginning + program
        share = 0.0 if len(program) > self.settings.max_characters else self._share(program, task)
        correct = float(share == 1)
        return Verdict(share if self.settings.partial else correct, {"correct": correct, "passed": share})

    def _share(self, program: str, task: Task) -> float:
        """The share of the task that passes; 0 for a program that takes its sandbox down again and again.

        Raises:
            SandboxLostError: it is the fork server that is lost again and again.
            ContentionError: the machine is too busy to tell.
        """
        losses = 0
        for _ in range(_LOSSES + 1):
            try:
                if isinstance(task, Cases):
                    return self._run_cases(program, task)
                return self._run_tests(program, task)
            except SandboxLostError as error:
                lost = error
                losses += self._sandboxes.alive
                if losses == _LOSSES:
                    return 0.0
        raise lost

    def _run_cases(self, program: str, task: Cases) -> float:
        """Up to the first case that does not pass, if only all of them count."""
        passed = 0
        settings = self.settings
        with self._sandboxes.take() as sandbox:
            clock = sandbox.clock()
            sandbox.give(["programs", program, settings.file_name, list(settings.command), settings.prelude])
            for case in task.cases:
                sandbox.give([case.input])
                _, output, end, code = sandbox.take(clock)
                right = end == "exit" and code == 0 and self._right(task, case, output)
                passed += right
                if end == "time" or not (right or settings.partial):
                    break
        return passed / len(task)

    def _right(self, task: Cases, case: Case, output: str) -> bool:
        if task.checker:
            return self._checked(task.checker, case, output)
        how = task.comparison or self.settings.comparison
        return any(same_output(output, each, how, self.settings.tolerance) for each in case.outputs)

    def _checked(self, checker: str, case: Case, output: str) -> bool:
        """What the checker says. What makes it raise, or takes it too long, is wrong: an output can see to that."""
        answer = case.outputs[0] if case.outputs else None
        with self._sandboxes.take() as sandbox:
            clock = sandbox.clock()
            sandbox.give(["programs", checker + _ASK_CHECKER, "checker.py", [], False])
            sandbox.give([json.dumps([case.input, output, answer])])
            _, _, end, code = sandbox.take(clock)
        return bool(end == "exit" and code == 0)

    def _run_tests(self, program: str, task: PythonTests | Calls) -> float:
        if isinstance(task, PythonTests):
            job: list[Any] = ["tests", list(task.sources), task.entry_point]
        else:
            job = ["calls", task.function, task.calls, self.settings.tolerance]
        ours, theirs = socket.socketpair()
        with ours, theirs, self._sandboxes.take() as solution, self._sandboxes.take() as judge:
            clock = judge.clock(solution)
            solution.give(["solution", program, self.settings.prelude], ours)
            judge.give(job, theirs)
            ours.close()
            theirs.close()
            _, lines, _ = judge.take(clock)
        return _read_reports([json.loads(line) for line in lines.splitlines() if line.endswith("}")], task)


# What follows the source of a checker: it is a program that is given a case, and accepts an output by its exit code.
_ASK_CHECKER = """

import json as _json, sys as _sys
_sys.exit(0 if check(*_json.load(_sys.stdin)) else 1)
"""


def _read_reports(reports: Sequence[dict[str, Any]], task: PythonTests | Calls) -> float:
    """The share that passed; a source that was not reached counts as one test that did not.

    Raises:
        InvalidInputError: a test cannot be judged, whatever the program is.
    """
    for report in reports:
        if "unfit" in report:
            raise InvalidInputError(f"a test cannot be judged: {report['unfit']}")
    sizes = [report["of"] for report in reports if "of" in report]
    total = sum(sizes) + (len(task.sources) - len(sizes) if isinstance(task, PythonTests) else 0)
    return sum(1 for report in reports if report.get("passed")) / max(int(total), len(task))


def _defines(program: str, entry_point: str) -> bool:
    """Whether it may: a program that is no Python by itself may be the rest of one that was begun in the prompt."""
    try:
        tree = ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return f"def {entry_point}" in program
    return any(isinstance(node, ast.FunctionDef) and node.name == entry_point for node in ast.walk(tree))
