"""Python that the model writes runs in a sandbox, and the model reads what it prints."""

import asyncio
import atexit
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, Self

from pydantic import Field, model_validator

from services.environments.base import Action, EnvironmentSettings, Step
from services.environments.playing.failures import EpisodeFailedError
from services.environments.tools import ToolEnvironment, ToolSettings
from shared.sandbox.inside.limits import Limits
from shared.sandbox.sandbox import Sandboxes, SandboxLostError, SandboxSettings
from shared.sandbox.usage import ContentionError

_LOSSES = 2  # sandboxes that a program loses before that is its own doing
_MOST_CHARACTERS = 65536  # of a program
_MARGIN_SECONDS = 5.0  # before tool_seconds, at which the model would read that the tool was late

_starting = threading.Lock()

# Shows what goes wrong on the output, without this program's own frame, and the value of a last line that is an
# expression, as an interactive interpreter does.
_PROGRAM = """
import ast, sys, traceback
sys.stderr = sys.stdout
try:
    tree = ast.parse({code!r}, "main.py")
    names = {{"__name__": "__main__"}}
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "main.py", "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "main.py", "eval"), names)
        if value is not None:
            print(repr(value))
except Exception as error:
    behind = error.__traceback__.tb_next
    traceback.print_exception(type(error), error, behind)
    sys.exit(1)
"""


class PythonSettings(ToolSettings):
    """Seconds and sizes are of one program."""

    seconds: float = Field(6.0, gt=0, description="processor time of a program; past it, it is stopped")
    idle_seconds: float = Field(3.0, gt=0, description="time in which it neither runs nor waits for a processor")
    memory_mb: int = Field(256, ge=64, description="address space of each process of a program, in MiB")
    processes: int = Field(8, ge=1, description="processes and threads that a program may have")
    scratch_mb: int = Field(16, ge=1, description="size of its /tmp, and of a file, in MiB")
    waiting: int = Field(2, ge=1, description="sandboxes that are kept prepared, for all episodes together")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        least = self.seconds + self.idle_seconds + _MARGIN_SECONDS
        if self.tool_seconds < least:
            raise ValueError(
                f"tool_seconds is {self.tool_seconds:g}; at least seconds + idle_seconds + {_MARGIN_SECONDS:g} = "
                f"{least:g} are needed: raise it, or lower the others"
            )
        return self


class PythonEnvironment(ToolEnvironment):
    """A tool `python` that runs a program and gives what it prints. Each program runs anew, and knows of no other.

    The episode is done when the model makes no call; a verifier judges what it says then.
    """

    name = "python"
    version = "1"
    description = "a tool that runs Python programs in a sandbox"
    rewards = False
    Settings = PythonSettings

    def __init__(self, settings: EnvironmentSettings) -> None:
        super().__init__(settings)
        own = settings if isinstance(settings, PythonSettings) else PythonSettings()
        self._limits = Limits(
            own.memory_mb, own.processes, own.scratch_mb, 1 + own.output_characters * 4 // 1024,
            own.seconds, own.idle_seconds, own.tool_seconds - _MARGIN_SECONDS,
        )  # fmt: skip
        self._waiting = own.waiting

    @property
    def functions(self) -> Sequence[Callable[..., Any]]:  # type: ignore[override]  # made of this episode
        return (self.python,)

    async def python(self, code: str) -> str:
        """Runs a Python 3 program with the standard library, without files of yours or a network.

        Gives what it prints, and the value of its last line if that is an expression. Each call starts anew: no
        variable of an earlier one is there.

        Args:
            code: the whole program.
        """
        if len(code) > _MOST_CHARACTERS:
            return f"Error: the program is {len(code)} characters long; at most {_MOST_CHARACTERS} are run"
        try:
            return await (await self._interpreters()).run(code)
        except (SandboxLostError, ContentionError) as error:
            raise EpisodeFailedError(f"the sandbox of the tool python: {error}") from error

    def check(self) -> None:
        """Raises PreconditionError where programs cannot be isolated."""
        interpreters(self._limits, self._waiting)

    async def reset(self, task: Mapping[str, Any], seed: int) -> None:
        """Raises PreconditionError where programs cannot be isolated."""
        await self._interpreters()

    async def finish(self, action: Action) -> Step:
        return Step(is_done=True)

    async def _interpreters(self) -> "Interpreters":
        """Those of this process."""
        return await asyncio.to_thread(interpreters, self._limits, self._waiting)


class Interpreters:
    """Runs programs, each in a sandbox of its own, as many at once as there are processors."""

    def __init__(self, limits: Limits, waiting: int) -> None:
        """Raises PreconditionError where programs cannot be isolated."""
        # The kernel ends sandboxes with the thread that started them: these stay as long as this is used.
        self._threads = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "python-tool")
        self._lock = threading.Lock()
        try:
            self._sandboxes = self._threads.submit(Sandboxes, SandboxSettings(limits), waiting).result()
        except BaseException:
            self._threads.shutdown()
            raise

    async def run(self, code: str) -> str:
        """What a program prints, and how it ended where that was not well.

        Raises:
            SandboxLostError, ContentionError: the machine, not the program, is at fault.
        """
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, code)

    def close(self) -> None:
        """Ends all of them. What runs is waited for."""
        self._threads.shutdown()
        self._sandboxes.close()

    def _run(self, code: str) -> str:
        losses = 0
        while True:
            try:
                return self._once(_PROGRAM.format(code=code))
            except SandboxLostError:
                losses += 1
                if not self._sandboxes.alive or losses > _LOSSES:
                    raise
                if losses == _LOSSES:
                    return "Error: the program took its sandbox down"

    def _once(self, program: str) -> str:
        with self._lock:
            sandbox = self._sandboxes.take()
        with sandbox:
            clock = sandbox.clock()
            sandbox.give(["programs", program, "main.py", [], False])
            sandbox.give([""])
            _, output, end, code = sandbox.take(clock)
        ended = {
            "time": "the program was stopped: its time was up",
            "output": "the program was stopped: it printed too much",
            "signal": f"the program was ended by signal {code}",
        }.get(end, "" if code == 0 else f"the program ended with code {code}")
        return f"{output}\nError: {ended}" if ended else str(output)


def interpreters(limits: Limits, waiting: int) -> Interpreters:
    """Those of this process with these limits, started once. Raises PreconditionError as `Interpreters`."""
    with _starting:
        return _started(limits, waiting)


@lru_cache
def _started(limits: Limits, waiting: int) -> Interpreters:
    made = Interpreters(limits, waiting)
    atexit.register(made.close)
    return made
