"""What a task is: an endless sequence of training problems and a fixed held-out set that never overlap."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Protocol


class Problem(Protocol):
    """One prompt and what is known of its right answer."""

    @property
    def prompt(self) -> str:
        """The text that the policy continues."""
        ...

    @property
    def reference(self) -> Mapping[str, Any]:
        """What the verifier compares a response with, in the form that this verifier reads."""
        ...


class Task(ABC):
    """Training problems by index, so that a restarted curriculum goes on where it was.

    A task is made once, when the curriculum starts, from `run.seed`. Whatever is random in it follows from the seed and
    the index alone.
    """

    name: ClassVar[str]  # what `run.task` calls it
    verifier: ClassVar[str]  # the verifier that judges its responses, by its name in [reward.verifiers]; "" where the
    # environment rewards them
    environment: ClassVar[str] = ""  # the environment that its responses are episodes of; "" where each is one turn

    def __init__(self, seed: int) -> None:
        self.seed = seed

    @abstractmethod
    def train(self, index: int) -> Problem:
        """Training problem `index`, counted from 0. There is no last one."""

    @abstractmethod
    def held_out(self, count: int) -> Sequence[Problem]:
        """`count` distinct problems, the same for every seed, none of which `train` ever gives.

        Raises:
            InvalidInputError: there are not that many.
        """
