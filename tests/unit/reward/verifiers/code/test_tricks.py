"""What a program does to have no verdict, or a better one; and what the infrastructure loses is replaced."""

import os
import signal
from typing import Any

import pytest

from services.reward.verifiers.code.verifier import CodeVerifier
from tests.support.programs import ADD, UNITTEST, case, share

DODGES = [
    "```" + " " * 60_000 + "x",
    "import resource; resource.prlimit(1, resource.RLIMIT_AS, (1 << 20, 1 << 20)); print('x' * 900000)",
    "import os\nfor n in range(1, 65): os.kill(1, n)",
    "import os\nos.sched_setaffinity(1, {0})\nwhile True: pass",
    "import os\nos.nice(19)\nwhile True: pass",
    "import os, shutil\nos.chmod('/tmp', 0)\nprint(2)",
    "import os\nwhile True:\n    if not os.fork(): os._exit(0)\n    os.wait()",
    "import signal, os\nsignal.signal(signal.SIGCHLD, signal.SIG_IGN)\nwhile True:\n    try:\n"
    "        if not os.fork(): sum(range(10**5)); os._exit(0)\n    except OSError: pass",
    "import os\npid = os.fork()\nif pid: os.kill(os.getpid(), 19)\nelse:\n    while True: pass",
    "import ctypes\nif ctypes.CDLL(None).vfork() == 0:\n    import time; time.sleep(100)",
    "\0",
    "\ud800",
    "print('\\ud800')",
    "x = " + "(" * 5000 + ")" * 5000,
    "import sys; sys.modules.clear(); 1 / 0",
    "import threading, time\nthreading.Thread(target=time.sleep, args=(100,)).start()",
    "import sys\nsys.stdout = sys.stderr = sys.stdin = None\nprint(1)",
    "import os\nos.close(0); os.close(1); os.close(2)",
    "import os\nos.unlink('main.py'); os.mkdir('main.py'); print(3)",
]


@pytest.mark.parametrize("program", DODGES)
@pytest.mark.parametrize("reference", [{"cases": case("1") * 2}, {"tests": ["assert f(1) == 2", "assert f(2) == 3"]}])
def test_no_response_is_without_a_verdict(code: CodeVerifier, program: str, reference: dict[str, Any]) -> None:
    assert share(code, program, **reference) == 0.0
    assert share(code, "print(1)\ndef f(x): return x + 1", **reference) == 1.0


AGREES = (
    "class Agrees:\n    rfind = rindex = find = index = count = lambda *_: 0\n"
    "    difference = symmetric_difference = lambda *_: set()\n    __len__ = lambda _: 0\n"
    "    strip = lstrip = rstrip = replace = removeprefix = lambda *_: ''\n    split = lambda *_: ['', '']\n"
    "    isdigit = issubset = issuperset = isdisjoint = is_integer = startswith = endswith = lambda *_: True\n"
    "    __eq__ = __ge__ = __le__ = __lt__ = __gt__ = __contains__ = lambda *_: True\n    __ne__ = lambda *_: False\n"
    "    __hash__ = lambda _: 1\n    __sub__ = __rsub__ = __xor__ = __mod__ = lambda *_: 0\n"
)


@pytest.mark.parametrize(
    "made",
    [
        "def f(x): return Agrees()",
        "class f(Agrees):\n    def __init__(self, x): pass",
        "f = lambda x: Agrees()\nf.rfind = 3",
        "def f(x): yield from iter(Agrees, 1)",
    ],
)
@pytest.mark.parametrize(
    "test",
    [
        "assert f(2).rfind('5') >= 0", "assert f(2).find('5') != -1", "assert f(2).count(5) == 0",
        "assert not f(2).difference({5})", "assert f(2).symmetric_difference({5}) == set()", "assert not f(2) - {5}",
        "assert f(2).strip('5') == ''", "assert f(2).replace('5', '') == ''", "assert f(2).split('5') == ['', '']",
        "assert f(2) == 5", "assert 5 == f(2)", "assert not f(2) != 5", "assert f(2) >= 5", "assert 5 <= f(2)",
        "assert 5 in f(2)", "assert f(2).__contains__(5)", "assert f(2).__eq__(5)", "assert f(2).__ge__(5)",
        "assert f(2).isdigit()", "assert f(2).issubset({5})", "assert getattr(f(2), 'removeprefix')('5') == ''",
        "assert str.find(f(2), '5') == 0", "assert f(2) ^ 5 == 0", "assert f(2) in (5, 6)",
        "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertIn(5, f(2))",
    ],
)  # fmt: skip
def test_no_object_is_told_what_to_agree_with(code: CodeVerifier, made: str, test: str) -> None:
    assert share(code, AGREES + made, tests=[test]) == 0.0


def test_classes_that_a_test_makes_objects_of_answer_for_themselves(code: CodeVerifier) -> None:
    program = (
        "class UnionFind:\n    def __init__(self, n): self.up = list(range(n))\n"
        "    def find(self, x): return x if self.up[x] == x else self.find(self.up[x])\n"
        "    def union(self, a, b): self.up[self.find(a)] = self.find(b)\n"
        "    def count(self, x): return sum(self.find(y) == x for y in self.up)\n"
        "    def __contains__(self, x): return 0 <= x < len(self.up)\n"
        "    def isolated(self, x): return self.count(x) == 1\n"
    )
    tests = [
        "u = UnionFind(4)\nu.union(1, 2)\nassert u.find(1) == u.find(2) != u.find(3)",
        "assert u.count(u.find(1)) == 2 and u.isolated(3)",
        "assert 3 in u and 4 not in u",
    ]
    assert share(code, program, tests=tests) == 1.0


def test_what_is_lost_is_replaced(code: CodeVerifier) -> None:
    """The fork server, or one of the sandboxes that wait."""
    for _ in range(2):
        os.kill(code._sandboxes._server.pid, signal.SIGKILL)
        assert share(code, "print(1)", cases=case("1")) == 1.0
        assert share(code, ADD, tests=UNITTEST) == 1.0
    for sandbox in list(code._sandboxes._waiting):
        os.kill(sandbox.pid, signal.SIGKILL)
    assert share(code, "print(1)", cases=case("1")) == 1.0
    assert share(code, ADD, tests=UNITTEST) == 1.0
