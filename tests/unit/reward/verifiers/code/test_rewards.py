"""Whole rewards of programs: as CPython runs them, and as data sets test them."""

import json
from typing import Any

import pytest

from services.reward.verifiers.code.verifier import CodeSettings, CodeVerifier
from shared.errors import InvalidInputError
from tests.support.programs import ADD, UNITTEST, case, share


@pytest.mark.parametrize(
    ("program", "output"),
    [
        ("f = open(1, 'w'); f.write('hello')", "hello"),
        ("def main():\n    f = open(1, 'w')\n    f.write('hello')\nmain()", "hello"),
        ("kept = [open(1, 'w')]\nkept[0].write('hello')\nkept.append(kept)", "hello"),
        ("import os\nout = os.fdopen(os.dup(1), 'wb')\nout.write(b'hello')", "hello"),
        ("import sys\nprint('hello'); sys.stdout.close()", "hello"),
        ("import sys\nsys.stdout = open(1, 'w')\nprint('hello')", "hello"),
        ("import sys\nprint('hel', end='', flush=True)\nsys.stdout.close()\nprint('lo', file=open('/dev/stdout', 'w'))",
         "hello"),
        ("print(open('/dev/stdin').read() * 2)", "IN\nIN\n"),
        ("print(open('/dev/fd/0').read() + open('/dev/stdin').read())", "IN\nIN\n"),
        ("import sys\nsys.stdin = open('/dev/stdin')\nprint(input())", "IN"),
        ("open('/dev/stdout', 'w').write('hello')", "hello"),
        ("with open('/dev/stdout', 'ab') as f: f.write(b'hello')", "hello"),
        ("import sys\nprint('hello')\nprint('no', file=open('/dev/stderr', 'w'))", "hello"),
        ("import os\nos.system('cat /dev/stdin > /dev/stdout')", "IN"),
        ("class Last:\n    def __del__(self): print('last')\nlast = Last()\nprint('first')", "first\nlast"),
        ("import atexit, io, os, sys\nout = sys.stdout = io.StringIO()\n"
         "atexit.register(lambda: os.write(1, out.getvalue().encode()))\nprint('hello')", "hello"),
        ("import builtins\nbuiltins.print('hello')\nbuiltins.mark = 5\nprint(mark)", "hello\n5"),
        ("print(__name__, __file__.rpartition('/')[2])", "__main__ main.py"),
    ],
)  # fmt: skip
def test_programs_end_as_cpython_ends_them(code: CodeVerifier, program: str, output: str) -> None:
    assert share(code, program, cases=case(output, "IN\n")) == 1.0


@pytest.mark.parametrize(
    "program",
    [
        "import sys\nprint(1)\nsys.stdout.close()\nprint(2)",  # ValueError: closed
        "import os\nprint(1)\nos.close(1)",  # exit code 120
        "import sys\nprint(1)\nsys.stdout.flush = None",
        "raise SystemExit('no')",
    ],
)
def test_what_ends_badly_in_cpython_is_wrong(code: CodeVerifier, program: str) -> None:
    assert share(code, program, cases=case("1")) == 0.0


HUMAN_EVAL = (
    "METADATA = {}\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(0, 0) == 0\n"
)
PYTEST = "def test_one():\n    assert add(1, 1) == 2\n\ndef test_zero():\n    assert add(0, 0) == 0\n"
METHODS = (
    "class TestAdd:\n    def setup_method(self):\n        self.one = 1\n"
    "    def test_one(self):\n        assert add(self.one, 1) == 2\n"
    "    def test_zero(self):\n        assert add(0, 0) == 0\n"
)
ASYNC = "async def test_one():\n    assert add(1, 1) == 2\n\nasync def test_zero():\n    assert add(0, 0) == 0\n"
TWO, CRASH = "def add(x, y): return 2", "def add(x, y): raise SystemExit(0)"


@pytest.mark.parametrize(
    "tests",
    [
        UNITTEST,
        UNITTEST + "unittest.main(exit=False)",
        UNITTEST + "unittest.main()",
        UNITTEST + "if __name__ == '__main__':\n    unittest.main()",
        UNITTEST + "unittest.TextTestRunner().run(unittest.defaultTestLoader.loadTestsFromTestCase(TestAdd))",
        PYTEST,
        METHODS,
        ASYNC,
        "from solution import add\n" + PYTEST,
        "from solution import *\n" + PYTEST,
        "import solution\nadd = solution.add\n" + PYTEST,
        ["assert add(1, 1) == 2", "assert add(0, 0) == 0"],
    ],
)
def test_tests_are_run_and_counted(code: CodeVerifier, tests: Any) -> None:
    shares = [share(code, program, tests=tests) for program in (ADD, TWO, CRASH, "def sub(x, y): return x - y", "")]
    assert shares == [1.0, 0.5, 0.0, 0.0, 0.0]


def test_rows_of_human_eval(code: CodeVerifier) -> None:
    row: dict[str, Any] = {"test": HUMAN_EVAL, "entry_point": "add", "prompt": 'def add(x, y):\n    """Adds."""\n'}
    assert share(code, ADD, **row) == 1.0
    assert share(code, "def add(x, y): return 0", **row) == 0.0
    assert share(code, "    return x + y\n", **row) == 1.0  # it goes on where the prompt ends
    assert share(code, "    return 3\n", **row) == 0.0
    called = {**row, "test": HUMAN_EVAL + "\ncheck(add)"}
    assert [share(code, program, **called) for program in (ADD, TWO)] == [1.0, 0.0]
    method = {"test": HUMAN_EVAL, "entry_point": "Solution().add"}
    assert (
        share(code, "class Solution:\n    def add(self, x: int, y: int) -> int:\n        return x + y", **method) == 1
    )
    assert share(code, "class Solution:\n    def add(self, x: int, y: int) -> int:\n        return 3", **method) == 0
    assert share(code, ADD, **method) == 0


@pytest.mark.parametrize(
    ("tests", "text"),
    [
        ("def verify():\n    assert add(1, 2) == 3", "it never calls the program"),
        ("def test_f(capsys):\n    assert add(1, 2) == 3", "test_f wants capsys, which only pytest would give"),
        ("try:\n    add(object(), 2)\nexcept:\n    pass", "it passes a object to the program"),
        ("import pytest\ndef test_add():\n    assert add(1, 2) == 3", "it imports pytest, which the sandbox does not"),
    ],
)
def test_tests_that_tell_nothing_are_refused(code: CodeVerifier, tests: str, text: str) -> None:
    for program in (ADD, TWO):
        with pytest.raises(InvalidInputError, match=text):
            share(code, program, tests=tests)


SOLUTION = (
    "class Solution:\n    def most(self, words: List[str]) -> Optional[int]:\n        counts = defaultdict(int)\n"
    "        for word in words:\n            counts[word] += 1\n"
    "        return max(accumulate(heapq.nlargest(2, counts.values())), default=None) if words else None\n"
)


def test_programs_of_leetcode_have_its_imports(code: CodeVerifier) -> None:
    tests = ["assert Solution().most(['a', 'b', 'a']) == 3", "assert Solution().most([]) is None"]
    assert share(code, SOLUTION, tests=tests) == 1.0
    calls = [{"input": '["a", "b", "a"]', "output": "3", "testtype": "functional"}]
    row = {"public_test_cases": json.dumps(calls), "metadata": '{"func_name": "most"}'}
    assert share(code, SOLUTION, **row) == 1.0
    assert share(code, "print(sqrt(4), Counter('aab')['a'])", cases=case("2.0 2")) == 1.0
    assert share(code, "def sqrt(x): return x\nsum = 3\nprint(sqrt(4), sum)", cases=case("4 3")) == 1.0
    strict = CodeVerifier(CodeSettings(seconds=3, prelude=False))
    strict.start()
    try:
        assert share(strict, SOLUTION, tests=tests) == 0.0
        assert share(strict, "print(sqrt(4))", cases=case("2.0")) == 0.0
    finally:
        strict.close()


@pytest.mark.parametrize(
    ("value", "expected", "right"),
    [
        ("(1, 2)", [1, 2], True),
        ("[(1, 2), (3,)]", [[1, 2], [3]], True),
        ("{2, 1}", [1, 2], True),
        ("0.1 + 0.2", 0.3, True),
        ("3.0", 3, True),
        ("{1: 'a'}", {"1": "a"}, True),
        ("[1, 2]", [2, 1], False),
        ("True", 1, False),
        ("'1'", 1, False),
        ("None", 0, False),
        ("10 ** 20 + 1", 10**20, False),
        ("iter([1, 2])", [1, 2], False),
        ("type('Any', (), {'__eq__': lambda *_: True})()", 1, False),
        ("type('Any', (int,), {'__eq__': lambda *_: True})(2)", 1, False),
    ],
)
def test_values_of_functions(code: CodeVerifier, value: str, expected: Any, right: bool) -> None:
    row = {"input_output": json.dumps({"fn_name": "f", "inputs": [[]], "outputs": [expected]})}
    assert share(code, f"def f(): return {value}", **row) == float(right)


@pytest.mark.parametrize(
    ("printed", "output", "right"),
    [
        ("0.50", "0.5", True),
        ("3.0", "3", True),
        ("\\n1  2\\t3", "1 2\n3\n", True),
        ("0.3333333", "0.33333333333", True),
        ("1e3", "1000", True),
        ("0.34", "0.33", False),
        ("1000000000000000001", "1000000000000000000", False),
        ("nan", "1", False),
        ("1_0", "10", False),
        ("1 2 3", "1 2", False),
        ("yes", "YES", False),
        ("007", "7", True),
        ("-0", "0", True),
    ],
)
def test_outputs_compared_as_tokens(code: CodeVerifier, printed: str, output: str, right: bool) -> None:
    program = f"print('{printed}')"
    assert share(code, program, cases=case(output), comparison="tokens") == float(right)
    assert share(code, program, inputs=[""], outputs=[output]) == float(right)
    assert share(code, program, cases=case(output)) == 0.0  # the default is by lines


def test_several_outputs_are_right_and_a_checker_decides(code: CodeVerifier) -> None:
    assert [share(code, f"print({n})", cases=case(["1", "2"])) for n in (1, 2, 3)] == [1.0, 1.0, 0.0]
    checker = (
        "from math import prod\ndef check(input, output, answer):\n"
        "    print('1')\n    return prod(map(int, output.split())) == int(input) and answer is None"
    )
    row: dict[str, Any] = {"cases": [{"input": "12"}, {"input": "12"}], "checker": checker}
    programs = (
        "print(3, 4)",
        "print(2, 2, 3)",
        "print(5)",
        "print('x')",
        "import os; os._exit(0)",
        "print('1' * 10**6)",
    )
    assert [share(code, program, **row) for program in programs] == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    looping = "def check(input, output, answer):\n    while output: pass"
    assert share(code, "print(1)", cases=case("1"), checker=looping) == 0.0
