"""An answer to judge, and verifiers whose verdicts are fixed."""

from collections.abc import Sequence
from typing import Any

from services.reward.verifiers.base import AsyncVerifier, Item, Verdict, Verifier
from services.reward.verifiers.exact import ExactSettings, ExactVerifier

ITEM = Item("2+2?", "4", {"answer": "4"})
GOOD = {"reward": 0.75, "parts": {"correct": 1, "style": 0.5}}


class Fixed:
    """Verdicts by the verifier's name; shows what it was asked."""

    def __init__(self, **verdicts: Verdict | Exception) -> None:
        self._verdicts = verdicts
        self.verifiers: dict[str, Verifier | AsyncVerifier] = {
            name: ExactVerifier(ExactSettings()) for name in verdicts
        }
        self.asked: list[tuple[str, Item]] = []

    async def verdicts(self, verifier: str, items: Sequence[Item]) -> list[Verdict]:
        self.asked += [(verifier, item) for item in items]
        verdict = self._verdicts[verifier]
        if isinstance(verdict, Exception):
            raise verdict
        return [verdict for _ in items]


def judge(verifier: Verifier, response: str, reference: dict[str, Any]) -> Verdict:
    return verifier.verify(Item("", response, reference))
