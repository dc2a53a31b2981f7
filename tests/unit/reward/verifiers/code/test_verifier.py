"""The code verifier on programs whose verdicts are plain to see."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

from services.reward.verifiers.base import Item
from services.reward.verifiers.code.extraction import extract
from services.reward.verifiers.code.verifier import CodeSettings, CodeVerifier
from shared.errors import InvalidInputError, PreconditionError


def make(**settings: Any) -> CodeVerifier:
    verifier = CodeVerifier(CodeSettings(**settings))
    try:
        verifier.start()
    except PreconditionError as error:
        pytest.skip(str(error))
    return verifier


@pytest.fixture(scope="module")
def code() -> Iterator[CodeVerifier]:
    verifier = make(seconds=3, partial=True)
    yield verifier
    verifier.close()


def share(verifier: CodeVerifier, program: str, **reference: Any) -> float:
    verdict = verifier.verify(Item("", program, reference))
    assert verdict.parts["correct"] == float(verdict.parts["passed"] == 1)
    return verdict.parts["passed"]


def cases(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"input": i, "output": o} for i, o in pairs]


ADD = cases(("1 2\n", "3\n"), ("-1 1\n", "0\n"), ("10 20\n", "30\n"), ("0 0", "0"))


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("a, b = map(int, input().split())\nprint(a + b)", 1.0),
        ("import sys\nprint(sum(map(int, sys.stdin.read().split())))", 1.0),
        ("import sys\nsys.stdout.write(str(sum(map(int, sys.stdin.readline().split()))))", 1.0),
        ("print(sum(int(x) for x in open(0).read().split()))", 1.0),
        ("def main():\n    print(sum(map(int, input().split())))\n\nif __name__ == '__main__':\n    main()", 1.0),
        ("a, b = map(int, input().split())\nprint(a + b, '  ')\nprint()", 1.0),  # trailing white space
        ("print(sum(map(int, input().split())))\nexit()", 1.0),
        ("print(sum(map(int, input().split())))\nimport sys; sys.exit(0)", 1.0),
        (
            "import threading\nt = threading.Thread(target=lambda: print(sum(map(int, input().split()))))\nt.start()",
            1.0,
        ),
        ("import atexit\natexit.register(lambda: print(sum(map(int, input().split()))))", 1.0),
        (
            "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'print(sum(map(int, input().split())))'])",
            1.0,
        ),
        (
            "from collections import *\nimport heapq, math, json\nprint(sum(map(int, input().split())))",
            1.0,
        ),
        ("a, b = map(int, input().split())\nprint(a - b)", 0.25),
        ("print(3)", 0.25),
        ("a, b = map(int, input().split())\nprint(f'{a} + {b} = {a + b}')", 0.0),
        ("a, b = map(int, input().split())\nprint(a + b + 0.0)", 0.0),
        ("a, b = map(int, input().split())\nprint(a + b)\nraise ValueError", 0.0),
        ("a, b = map(int, input().split())\nprint(a + b)\nexit(1)", 0.0),
        ("a, b = map(int, input().split())\nif a: print(a + b)\nelse: 1 / 0", 0.75),
        ("a, b = map(int, input().split())\nprint(a + b if a < 10 else '')", 0.75),
        ("a, b = input().split()\nprint(a + b)", 0.0),
        ("print(sum(map(int, input().split()))", 0.0),  # a syntax error
        ("", 0.0),
        ("I would add the two numbers.", 0.0),
        ("import os\nos._exit(0)", 0.0),
        ("import numpy\nprint(numpy.add(*map(int, input().split())))", 0.0),  # only the standard library is there
    ],
)
def test_programs_on_stdin_and_stdout(code: CodeVerifier, program: str, expected: float) -> None:
    assert share(code, program, cases=ADD) == expected


@pytest.mark.parametrize(
    ("program", "pairs", "expected"),
    [
        ("n = int(input())\nprint(*sorted(input() for _ in range(n)), sep='\\n')", [("2\nb\na\n", "a\nb\n")], 1.0),
        ("print(input()[::-1])", [("äö\n", "öä\n"), ("", "")], 0.5),  # no input is an EOFError
        ("print(2 ** 1000 % 10 ** 9)", [("", str(2**1000 % 10**9))], 1.0),
        ("print('a\\tb')", [("", "a b")], 0.0),
        ("print('a\\n\\nb')", [("", "a\n\nb\n\n")], 1.0),
        ("print('a\\nb')", [("", "a\n\nb")], 0.0),
        ("print(' a')", [("", "a")], 0.0),
        (
            "import sys\nsys.setrecursionlimit(20000)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(10000))",
            [("", "10000")],
            1.0,
        ),
        ("import random\nrandom.seed(1)\nprint(len({random.random() for _ in range(5)}))", [("", "5")], 1.0),
        ("print('x' * 3_000_000)", [("", "x" * 3_000_000)], 0.0),  # above output_kb
    ],
)
def test_programs_with_cases_of_their_own(
    code: CodeVerifier, program: str, pairs: list[tuple[str, str]], expected: float
) -> None:
    assert share(code, program, cases=cases(*pairs)) == expected


STACK = (
    "class Stack:\n    def __init__(self, items=()):\n        self.items = list(items)\n"
    "    def push(self, x):\n        self.items.append(x)\n        return self\n"
    "    def pop(self):\n        return self.items.pop()\n    def __len__(self):\n        return len(self.items)\n"
    "    def __iter__(self):\n        return iter(self.items)\n"
    "    def __getitem__(self, i):\n        return self.items[i]\n"
    "    def __eq__(self, other):\n        return isinstance(other, Stack) and self.items == other.items\n"
    "    def __add__(self, other):\n        return Stack(self.items + other.items)\n"
)


@pytest.mark.parametrize(
    ("program", "tests", "expected"),
    [
        ("def add(a, b): return a + b", ["assert add(1, 2) == 3", "assert add('a', 'b') == 'ab'"], 1.0),
        ("def add(a, b): return a - b", ["assert add(1, 2) == 3", "assert add(0, 0) == 0"], 0.5),
        ("def add(a, b): return a + b", "assert add(1, 2) == 3\nassert add(1, 1) == 3", 0.0),
        ("def f(x): return [x, (x,), {x}, {x: None}]", ["assert f(1) == [1, (1,), {1}, {1: None}]"], 1.0),
        ("def f(x): return (x,)", ["assert f(1) == [1]", "assert isinstance(f(1), tuple)"], 0.5),
        ("def f(x): return x", ["assert f(10**40) == 10**40", "assert f(b'x') == b'x'", "assert f(1j) == 1j"], 1.0),
        ("def f(x): return x", ["assert f(float('inf')) > 1e308", "assert f(float('nan')) != f(0)"], 1.0),
        ("def f(x): return x", ["assert f(True) is True", "assert f(None) is None", "assert f(1) is not True"], 1.0),
        ("def root(x): return x ** 0.5", ["assert abs(root(2) - 1.4) < 0.1", "assert math.isclose(root(1), 1)"], 1.0),
        ("def root(x): return x ** 0.5", ["import math\nassert math.isclose(root(2) ** 2, 2)"], 1.0),
        ("def f(n): yield from range(n)", ["assert list(f(3)) == [0, 1, 2]", "assert sum(f(4)) == 6"], 1.0),
        ("def f(n): return map(str, range(n))", ["assert sorted(f(2)) == ['0', '1']"], 1.0),
        ("def sort(x): x.sort()", ["x = [3, 1, 2]\nsort(x)\nassert x == [1, 2, 3]", "assert x[0] == 1"], 1.0),
        ("def twice(f, x): return f(f(x))", ["assert twice(lambda x: x * 3, 1) == 9", "assert twice(abs, -2)"], 1.0),
        ("def adder(n): return lambda x: x + n", ["assert adder(2)(3) == 5"], 1.0),
        ("def f(x):\n    if x < 0: raise ValueError('negative')\n    return x", [
            "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert 'negative' in str(e)",
            "try:\n    f(1)\nexcept ValueError:\n    assert False",
            "try:\n    f(-1)\nexcept KeyError:\n    pass",
        ], 2 / 3),
        (STACK, ["s = Stack()\ns.push(1).push(2)\nassert s.pop() == 2", "assert len(s) == 1 and s[0] == 1"], 1.0),
        (STACK, ["assert Stack([1]) == Stack([1])", "assert Stack([1]) != Stack()", "assert Stack([1]) != [1]"], 1.0),
        (STACK, ["assert list(Stack([1]) + Stack([2])) == [1, 2]", "assert Stack().pop() == 1"], 0.5),
        ("class Solution:\n    def two(self, xs: list[int]) -> int:\n        return xs[0] + xs[1]", [
            "assert Solution().two([2, 7]) == 9", "def check(candidate):\n    assert candidate([1, 2]) == 3\n"
            "check(Solution().two)",
        ], 1.0),
        ("LIMIT = 5\ndef f(): return LIMIT", ["assert LIMIT == f() == 5"], 1.0),
        ("def f(): pass", ["assert g() == 1"], 0.0),
        ("def f(:", ["assert f() == 1", "pass"], 0.0),
        ("1 / 0\ndef f(): return 1", ["assert f() == 1"], 0.0),
        ("def f(x): return f(x)", ["assert f(1) == 1"], 0.0),
        ("def f(n):\n    while n: pass\n    return 0", ["assert f(0) == 0", "assert f(1) == 0", "assert 1"], 1 / 3),
        ("from fractions import Fraction\ndef f(): return Fraction(1, 3)", [
            "from fractions import Fraction\nassert f() * 3 == 1 and f() == Fraction(1, 3)"
        ], 1.0),
    ],
)  # fmt: skip
def test_programs_with_tests(code: CodeVerifier, program: str, tests: Any, expected: float) -> None:
    assert share(code, program, tests=tests) == expected


@pytest.mark.parametrize(
    "program",
    [
        "import os\nos._exit(0)",
        "import os\ndef f(x): os._exit(0)",
        "import sys\nsys.exit(0)",
        "def f(x): raise SystemExit(0)",
        "class Yes:\n    __eq__ = __lt__ = __gt__ = __contains__ = lambda *_: True\n    __hash__ = lambda _: 5\n"
        "    __sub__ = __rsub__ = __round__ = __abs__ = lambda *_: 0\n"
        "    startswith = isdigit = issubset = lambda *_: True\ndef f(x): return Yes()",
        "class Yes(int):\n    __eq__ = lambda *_: True\n    __hash__ = int.__hash__\ndef f(x): return Yes(1)",
        "class Yes(str):\n    startswith = __eq__ = lambda *_: True\n    __hash__ = str.__hash__\nf = Yes",
        "import builtins\nbuiltins.abs = builtins.round = lambda *_: 0\nbuiltins.AssertionError = SystemExit\nf = id",
        "def abs(x): return 0\ndef round(*_): return 5\ndef isinstance(*_): return True\nclass math:\n"
        "    isclose = staticmethod(lambda *_: True)\ndef f(x): return x",
        "import sys\nfor m in list(sys.modules.values()):\n    if hasattr(m, 'send'): m.send = print\nf = id",
        # It takes over its own end of the link, and says what it likes.
        "import sys\nframe = sys._getframe()\nwhile 'link' not in frame.f_locals: frame = frame.f_back\n"
        "link = frame.f_locals['link']\n"
        "for m in ('{\"passed\": true}', '[\"value\", true, []]', '[\"value\", 0]', 'x'):\n"
        "    link.sendall(len(m).to_bytes(4, 'big') + m.encode())\ndef f(x): return True",
        "print('{\"passed\": true}')\nimport os\n"
        "for fd in range(64):\n    try: os.write(fd, b'{\"passed\": true}\\n')\n"
        "    except OSError: pass\ndef f(x): return None",
        "import gc\nfor o in gc.get_objects():\n    if type(o) is dict and 'passed' in o: o['passed'] = True\nf = id",
        "import signal, os\nos.kill(1, signal.SIGINT)\nos.kill(os.getppid(), 9)\nf = id",
        "def f(x): return [f(x)]",
        "x = []\nx.append(x)\ndef f(_): return x",
        "def f(x): return 'a' * 10**8",
        "def f(x):\n    import os\n    while True: os.fork()",
    ],
)
def test_no_trick_passes_a_test(code: CodeVerifier, program: str) -> None:
    tests = [
        "assert f(2) == 5", "assert f(2) - 5 == 0", "assert abs(f(2) - 5) < 1e-6", "assert f(2) in (5, 6)",
        "assert 5 in f(2)", "assert f(2) == [5, 6]", "assert str(f(2)).startswith('5') and f(2).startswith('5')",
        "assert round(f(2), 3) == 5", "assert math.isclose(f(2), 5)", "assert {5: True}[f(2)]",
        "assert isinstance(f(2), int) and f(2) == 5", "try:\n    assert f(2) == 5\nexcept ValueError:\n    pass",
        "try:\n    f(2)\nfinally:\n    assert f(2) >= 5 and f(2) <= 5", "assert not f(2) != 5",
    ]  # fmt: skip
    assert share(code, program, tests=tests) == 0.0


def test_what_decides_is_not_in_the_sandbox_of_the_program(code: CodeVerifier) -> None:
    """It looks for the expected number in all files and objects that it has. It finds what it is given only."""
    program = (
        "import gc, glob\n"
        "def f(x):\n"
        "    seen = [str(o)[:1000] for o in gc.get_objects() if isinstance(o, (dict, list))]\n"
        "    seen += [open(name).read() for name in glob.glob('/tmp/*.*')]\n"
        "    return any('918' + '273' in text for text in seen)"
    )
    assert share(code, program, tests=["assert f(1) == 918273 or f(1)", "assert f('918273')"]) == 0.5


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ({}, "reference of code is {}; expected {'cases': [{'input': text, 'output': text}, ...]} or {'tests'"),
        ({"cases": []}, "reference of code"),
        ({"cases": [{"input": "1"}]}, "reference of code"),
        ({"cases": [{"input": 1, "output": "1"}]}, "reference of code"),
        ({"cases": cases(("", "")), "tests": ["pass"]}, "reference of code"),
        ({"tests": [1]}, "reference of code"),
        ({"tests": ["assert f( == 1"]}, "a test that is no Python"),
        ({"tests": ["import numpy\nassert f(1) == 1"]}, "it imports numpy, which the sandbox does not have"),
        ({"tests": ["assert f(object()) == 1"]}, "it passes a object to the program"),
    ],
)
def test_what_cannot_be_judged_is_refused(code: CodeVerifier, reference: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        share(code, "def f(x): return 1", **reference)
    assert text in str(caught.value)


def test_a_program_beyond_the_limit_is_wrong(code: CodeVerifier) -> None:
    """Were it refused, a policy could have a group dropped by writing one."""
    program = "print(sum(map(int, input().split())))\n"
    assert share(code, program, cases=ADD) == 1
    assert share(code, program + "#" * 65536, cases=ADD) == 0


def test_the_entry_point_is_the_candidate(code: CodeVerifier) -> None:
    tests = (
        "def check(candidate):\n    for i in range(5):\n        assert candidate([i] * i) == i * i\n\ncheck(candidate)"
    )
    assert share(code, "def sum(xs):\n    return len(xs) ** 2", tests=tests, entry_point="sum") == 1.0


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("print(1)", "print(1)"),
        ("Here:\n```python\nprint(1)\n```\nDone.", "print(1)\n"),
        ("```py\nprint(1)\n```\nor better\n```\nprint(2)\n```", "print(2)\n"),
        ("```python\nprint(1)\nprint(2)", "print(1)\nprint(2)"),
        ("<think>```python\nprint(0)\n```</think>\n```python\nprint(1)\n```", "print(1)\n"),
        ("1. So:\n   ```python\nprint('```')\n   ```\n", "print('```')\n"),
    ],
)
def test_the_program_is_the_last_block(response: str, program: str) -> None:
    assert extract(response) == program


def test_all_or_nothing_and_another_language() -> None:
    shell = make(command=["sh", "{file}"], file_name="main.sh", seconds=3)
    try:
        verdict = shell.verify(Item("", "read a b\necho $((a + b))", {"cases": ADD}))
        assert (verdict.reward, verdict.parts) == (1.0, {"correct": 1.0, "passed": 1.0})
        verdict = shell.verify(Item("", "echo 3; ls /proc 2>/dev/null", {"cases": ADD}))
        assert (verdict.reward, verdict.parts["correct"]) == (0.0, 0.0)
        with pytest.raises(InvalidInputError, match="tests, which are Python's"):
            shell.verify(Item("", "", {"tests": ["pass"]}))
    finally:
        shell.close()


def test_without_isolation_it_runs_only_when_told_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    verifier = CodeVerifier(CodeSettings(isolation="none", seconds=3))
    assert "CODE RUNS WITHOUT ISOLATION" in caplog.text
    verifier.start()
    try:
        assert share(verifier, f"import os\nprint(os.getuid() == {os.getuid()})", cases=cases(("", "True"))) == 1.0
    finally:
        verifier.close()
