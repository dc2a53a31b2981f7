"""What comes of a verification."""

import sys
import traceback
from enum import StrEnum
from typing import NamedTuple

from services.reward.verifiers.base import Verdict


class Outcome(StrEnum):
    SCORED = "scored"
    FAILED = "failed"  # the verifier broke, or its process died
    TIMED_OUT = "timed_out"
    REFUSED = "refused"  # the item cannot be judged, and no retry helps


def described(error: Exception, verifier: object) -> str:
    """What a verifier raised, with the place in its own file, or else where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    own = getattr(sys.modules.get(type(verifier).__module__), "__file__", None)
    inside = [frame for frame in frames if frame.filename == own] or frames
    where = f" ({inside[-1].filename}:{inside[-1].lineno})" if inside else ""
    return f"{type(error).__name__}: {error}{where}"


class Scored(NamedTuple):
    """`verdict` is there exactly where `outcome` is SCORED: a failure has no reward, not one of 0."""

    outcome: Outcome
    verdict: Verdict | None
    verifier: str
    version: str
    seconds: float
    error: str = ""
