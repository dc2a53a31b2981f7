"""Work grows with a response and not with its square: pieces that make patterns backtrack, more and more of them."""

import time
from typing import Any

import pytest

from services.reward.verifiers.base import Item, Verifier
from services.reward.verifiers.registry import make_verifiers

PIECES = [
    " ",
    "\n",
    "\t ",
    "```",
    "```json",
    "``` ",
    "{",
    "}",
    r"\boxed",
    r"\boxed ",
    r"\boxed{",
    r"\boxed{1} ",
    r"\boxed{1},",
    "answer",
    "answer ",
    "answer is ",
    "answer to ",
    "final ",
    "final answer\n",
    "####",
    "**",
    "<think>",
    "</think>",
    '"</think>',
    "<answer>",
    "</answer>",
    "<answer></answer>",
    "$",
    ".",
    "A, ",
    "(A) ",
    "no ",
    "[",
    "[1],",
    '"',
    "\u0301\u0323",
    "\u200b",
    "1",
    "1,",
    "~",
    "\\",
]
REFERENCES: dict[str, dict[str, Any]] = {
    "math": {"answer": "5"},
    "choice": {"answer": "B", "choices": ["Rome", "Paris"]},
    "exact": {"answer": "Paris"},
    "json_schema": {"schema": {"type": "object"}},
    "regex": {"pattern": "(Mon|Tues)day"},
    "format": {},
    "countdown": {"numbers": [1, 2], "target": 3},
}
VERIFIERS = {
    **make_verifiers({}),
    **make_verifiers({"exact": {"part": "answer"}, "regex": {"part": "answer", "judging_seconds": 60}}),
}


@pytest.mark.parametrize("piece", PIECES, ids=repr)
@pytest.mark.parametrize("name", REFERENCES)
def test_time_grows_with_the_length_of_a_response(name: str, piece: str) -> None:
    """Sixteen times the length takes 256 times as long where it grows with the square; 64 leaves room for noise."""
    verifier = VERIFIERS[name]
    assert isinstance(verifier, Verifier)

    def seconds(characters: int) -> float:
        item = Item("", piece * (characters // len(piece)) + "x", REFERENCES[name])
        began = time.process_time()
        assert verifier.verify(item).parts["correct"] == 0
        return time.process_time() - began

    seconds(1000)
    short = max(min(seconds(16_000) for _ in range(2)), 0.001)
    # Another one if it was disturbed.
    assert any(seconds(256_000) < 64 * short for _ in range(4))
