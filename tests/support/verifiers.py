"""Verifiers that do as the response says, for tests of what runs verifiers."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from services.reward.verifiers.base import (
    AsyncVerifier,
    BatchVerifier,
    Item,
    Parts,
    Verdict,
    Verifier,
    VerifierSettings,
)
from shared.errors import InvalidInputError, PreconditionError


def item(response: str) -> Item:
    return Item("", response, {})


# What is no verdict, though a verifier gives it.
UNUSABLE: dict[str, Any] = {
    "none": None,
    "text": Verdict("1", {}),  # type: ignore[arg-type]
    "huge": Verdict(10**400, {}),
    "nan-part": Verdict(1.0, {"style": float("nan")}),
    "text-part": Verdict(1.0, {"style": "good"}),  # type: ignore[dict-item]
    "nameless-part": Verdict(1.0, {7: 1.0}),  # type: ignore[dict-item]
    "surrogate-part": Verdict(1.0, {"\ud800": 1.0}),
}


class ScriptedSettings(VerifierSettings):
    starts: str = ""  # "refused", "slowly" or "killed"


class ScriptedVerifier(Verifier):
    """The response is a word and perhaps a number: the reward of "ok 0.5" is 0.5."""

    name: ClassVar[str] = "scripted"
    version: ClassVar[str] = "7"
    description: ClassVar[str] = "does what it is told"
    Settings: ClassVar[type[VerifierSettings]] = ScriptedSettings

    settings: ScriptedSettings

    def start(self) -> None:
        if self.settings.starts == "refused":
            raise PreconditionError("not on this machine")
        if self.settings.starts == "slowly":
            time.sleep(600)
        if self.settings.starts == "killed":
            os.kill(os.getpid(), signal.SIGKILL)

    def verify(self, item: Item) -> Verdict:
        word, _, value = item.response.partition(" ")
        parts: dict[str, float] = {"pid": os.getpid()}
        match word:
            case "ok":
                return Verdict(float(value or 1), parts)
            case "sleep":
                time.sleep(float(value))
            case "exit":
                os._exit(int(value))
            case "kill":
                os.kill(os.getpid(), int(value))
            case "raise":
                raise RuntimeError("it broke")
            case "refuse":
                raise InvalidInputError("no such reference")
            case "once":
                fault = Path(value)
                if not fault.exists():
                    fault.touch()
                    raise RuntimeError("it broke")
            case "print":
                print("[true, [[0, 0, 1.0, {}]]]", flush=True)
            case "flood":
                for _ in range(1 << 20):
                    print("x" * 1023)
            case "flood-quietly":
                with contextlib.suppress(Exception):
                    print("x" * (1 << 20))
            case "flood-below":
                subprocess.run(["head", "-c", "10000000", "/dev/zero"], check=False)
            case "say-and-exit":
                print(value, flush=True)
                os._exit(1)
            case "give":
                return UNUSABLE[value]  # type: ignore[no-any-return]  # which is the point
            case "take":
                return Verdict(len(bytes(int(value) << 20)), parts)
            case "sees":
                return Verdict(float(value in os.environ), parts)
        return Verdict(1.0, parts)


class BatchedVerifier(ScriptedVerifier, BatchVerifier):
    """Its rewards are the sizes of its batches."""

    name: ClassVar[str] = "batched"
    batch_size: int = 4

    def verify_batch(self, items: Sequence[Item]) -> list[Verdict]:
        given = [ScriptedVerifier.verify(self, one) for one in items]
        size = Verdict(len(items), {"pid": os.getpid()})
        return [one if item.response.startswith("give") else size for item, one in zip(items, given, strict=True)]

    def verify(self, item: Item) -> Verdict:
        return BatchVerifier.verify(self, item)


class AskingVerifier(AsyncVerifier):
    """Half of what "scripted" says."""

    name: ClassVar[str] = "asking"
    version: ClassVar[str] = "3"
    description: ClassVar[str] = "asks another verifier"

    async def verify(self, item: Item, others: Parts) -> Verdict:
        (verdict,) = await others.verdicts("scripted", [item])
        return Verdict(verdict.reward / 2, verdict.parts)
