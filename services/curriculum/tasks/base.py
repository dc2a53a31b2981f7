"""Where prompts come from: an endless training sequence and a fixed held-out set that never overlap."""

from typing import Any, Protocol

from services.curriculum.tasks.countdown import Countdown
from shared.errors import NotFoundError


class Problem(Protocol):
    @property
    def prompt(self) -> str:
        """What the policy reads."""
        ...

    @property
    def reference(self) -> dict[str, Any]:
        """What the verifier compares a response with."""
        ...


class Task(Protocol):
    """Training problems by index, so that a restarted curriculum goes on where it was."""

    def train(self, index: int) -> Problem: ...

    def held_out(self, count: int) -> list[Any]:
        """The same for every seed, and all distinct."""
        ...


TASKS = {"countdown": Countdown}


def make_task(name: str, seed: int) -> Task:
    """Raises NotFoundError for an unknown name. A task's name is also the name of its verifier."""
    if name not in TASKS:
        raise NotFoundError(f"run.task is {name!r}; known: {', '.join(TASKS)}")
    return TASKS[name](seed)
