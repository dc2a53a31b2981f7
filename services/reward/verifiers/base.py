"""What a verifier is: a pure function from a response and its reference to named parts of a reward."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol


@dataclass(frozen=True, slots=True)
class Verdict:
    """A reward and what it is made of. `parts["correct"]` is 1.0 for a right answer and 0.0 for a wrong one."""

    reward: float
    parts: Mapping[str, float]


class Verifier(Protocol):
    """Scores one response. Stateless, so that calls may run at the same time."""

    name: ClassVar[str]
    version: ClassVar[str]
    description: ClassVar[str]

    def verify(self, prompt: str, response: str, reference: Mapping[str, Any]) -> Verdict:
        """Judges a response; any response, however malformed, has a verdict.

        Raises:
            InvalidInputError: the *reference* is unusable, which is the fault of the task and not of the policy.
        """
        ...
