"""All verifiers, by name."""

from services.reward.verifiers.base import Verifier
from services.reward.verifiers.countdown import CountdownVerifier

VERIFIERS: dict[str, Verifier] = {v.name: v for v in (CountdownVerifier(),)}
