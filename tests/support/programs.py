"""Rewards of programs."""

from typing import Any

from services.reward.verifiers.base import Item
from services.reward.verifiers.code.verifier import CodeVerifier

ADD = "def add(x, y): return x + y"
UNITTEST = (
    "import unittest\nclass TestAdd(unittest.TestCase):\n    def setUp(self):\n        self.one = 1\n"
    "    def test_one(self):\n        self.assertEqual(add(self.one, 1), 2)\n"
    "    def test_zero(self):\n        with self.subTest('zero'):\n            self.assertEqual(add(0, 0), 0)\n"
)


def share(verifier: CodeVerifier, program: str, **reference: Any) -> float:
    return verifier.verify(Item("", program, reference)).parts["passed"]


def case(output: Any, text: str = "") -> list[dict[str, Any]]:
    return [{"input": text, "output": output}]
