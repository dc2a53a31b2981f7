"""Programs of the model run in the sandbox, and what they do is a message."""

import asyncio

import pytest

from routershift.trajectory import FinishReason
from services.environments.base import Action, MessagesObservation, Step, ToolCall
from services.environments.kinds.python import PythonEnvironment, PythonSettings

SETTINGS = PythonSettings(seconds=2.0, idle_seconds=1.0, output_characters=400, waiting=1)


async def output(code: object) -> str:
    environment = PythonEnvironment(SETTINGS)
    await environment.reset({}, 0)
    step = await environment.step(Action("", FinishReason.STOP, (ToolCall("call_0", "python", {"code": code}),)))
    assert isinstance(step.observation, MessagesObservation)
    await environment.close()
    return step.observation.messages[0].content


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("print(6 * 7)", "42\n"),
        ("a = 6\na * 7", "42\n"),
        ("def f(n):\n    return 1 if n < 2 else n * f(n - 1)\nprint(f(5))\nNone", "120\n"),
        ("import sys\nprint('é', file=sys.stderr)", "é\n"),
        ("", ""),
    ],
)
async def test_what_a_program_prints_and_its_last_value(code: str, expected: str) -> None:
    assert await output(code) == expected


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero\n\nError: the program ended with code 1"),
        ("def f(:", "SyntaxError"),
        ("x = '\\x00", "SyntaxError"),
        ("while True: pass", "its time was up"),
        ("import time; time.sleep(60)", "its time was up"),
        ("print('x' * 10_000_000)", "it printed too much"),
        ("import os; os.kill(os.getpid(), 9)", "ended by signal 9"),
        ("raise SystemExit(3)", "ended with code 3"),
        ("import socket; socket.create_connection(('1.1.1.1', 80))", "Error"),
        ("open('/etc/passwd').read()", "Error"),
        ("'''\"\"\"{}%s\\", "SyntaxError"),
        (7, "code: Input should be a valid string"),
        ("x" * 70_000, "the program is 70000 characters long; at most 65536 are run"),
    ],
)
async def test_whatever_a_program_does_is_a_message(code: object, said: str) -> None:
    assert said in await output(code)


async def test_many_run_at_once_and_know_nothing_of_each_other() -> None:
    codes = [
        f"import pathlib\np = pathlib.Path('/tmp/x')\nprint(p.exists(), {i})\np.write_text('1')\n0" for i in range(6)
    ]
    assert await asyncio.gather(*map(output, codes)) == [f"False {i}\n0\n" for i in range(6)]


async def test_a_turn_without_a_call_is_the_last() -> None:
    environment = PythonEnvironment(SETTINGS)
    assert await environment.step(Action("It is 42.", FinishReason.STOP)) == Step(is_done=True)
    assert not environment.rewards
    (tool,) = environment.tools
    assert tool["function"]["name"] == "python"
    assert tool["function"]["parameters"]["properties"]["code"] == {
        "description": "the whole program.",
        "type": "string",
    }
