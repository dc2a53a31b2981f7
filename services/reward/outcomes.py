"""What comes of a verification."""

import sys
import traceback
from enum import StrEnum
from typing import NamedTuple

from services.reward.limits import memory_hint
from services.reward.verifiers.base import Verdict, VerifierError
from shared.errors import InvalidInputError
from shared.values import is_text, message, number, one_line, shown

_MAX_ERROR_CHARACTERS = 2000
_MAX_PARTS = 256


class Outcome(StrEnum):
    SCORED = "scored"
    FAILED = "failed"  # the verifier broke, or its process died
    TIMED_OUT = "timed_out"
    REFUSED = "refused"  # the item cannot be judged, and no retry helps


def unscored(error: BaseException, verifier: object) -> tuple[Outcome, str]:
    """The outcome of a verifier that raised, and why in one line of bounded length."""
    outcome = Outcome.REFUSED if isinstance(error, InvalidInputError) else Outcome.FAILED
    text = str(error) if isinstance(error, InvalidInputError | VerifierError) else _described(error, verifier)
    return outcome, one_line(text, _MAX_ERROR_CHARACTERS)


def checked(verdict: object) -> Verdict:
    """The verdict, made of plain numbers.

    Raises:
        VerifierError: it is no verdict, or one of its numbers is none or is not finite.
        Exception: what the verifier gave in the place of a verdict.
    """
    if isinstance(verdict, Exception):
        raise verdict
    if not isinstance(verdict, Verdict):
        raise VerifierError(f"the verdict is {shown(verdict)}; expected a Verdict")
    reward = number(verdict.reward)
    if reward is None:
        raise VerifierError(f"the reward is {shown(verdict.reward)}")
    if len(verdict.parts) > _MAX_PARTS:
        raise VerifierError(f"the verdict has {len(verdict.parts)} parts; expected at most {_MAX_PARTS}")
    parts = {}
    for name, value in verdict.parts.items():
        part = number(value)
        if part is None or not isinstance(name, str) or not is_text(name):
            raise VerifierError(f"parts[{shown(name)}] is {shown(value)}; expected finite numbers by name")
        parts[name] = part
    return Verdict(reward, parts)


def _described(error: BaseException, verifier: object) -> str:
    """What a verifier raised, with the place in its own file, or else where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = getattr(sys.modules.get(type(verifier).__module__), "__file__", None)
    inside = [frame for frame in frames if frame.filename == own] or frames
    where = f" ({inside[-1].filename}:{inside[-1].lineno})" if inside else ""
    return f"{type(error).__name__}: {message(error)}{where}{memory_hint(error)}"


class Scored(NamedTuple):
    """`verdict` is there exactly where `outcome` is SCORED: a failure has no reward, not one of 0."""

    outcome: Outcome
    verdict: Verdict | None
    verifier: str
    version: str
    seconds: float
    error: str = ""
