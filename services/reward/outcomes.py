"""What comes of a verification."""

from enum import StrEnum
from typing import NamedTuple

from services.reward.verifiers.base import Verdict


class Outcome(StrEnum):
    SCORED = "scored"
    FAILED = "failed"  # the verifier broke, or its process died
    TIMED_OUT = "timed_out"
    REFUSED = "refused"  # the item cannot be judged, and no retry helps


class Scored(NamedTuple):
    """`verdict` is there exactly where `outcome` is SCORED: a failure has no reward, not one of 0."""

    outcome: Outcome
    verdict: Verdict | None
    verifier: str
    version: str
    seconds: float
    error: str = ""
