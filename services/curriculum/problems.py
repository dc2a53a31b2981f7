"""What the curriculum handles, wherever it comes from: problems, and how to get at them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from services.curriculum.tasks.base import Task


@dataclass(frozen=True, slots=True)
class Problem:
    """One prompt, what is known of its right answer, and who judges."""

    prompt: str  # as verifiers see it
    reference: Mapping[str, Any]  # what the verifier compares a response with, in the form that this verifier reads
    verifier: str  # by its name in [reward.verifiers]
    id: str = ""  # the row that it was made of; "" where a task has no rows
    token_ids: tuple[int, ...] = ()  # what the policy reads; empty: generation tokenizes the prompt


class Problems(Protocol):
    """Training problems by index, and held-out ones, as the worker and the evaluation ask for them."""

    def train(self, index: int) -> Problem:
        """Training problem `index`, counted from 0: it follows from `run.seed` and the index. There is no last one."""
        ...

    def held_out(self, count: int) -> Sequence[Problem]:
        """At most `count` held-out problems, the same for every seed, none of which `train` ever gives.

        Raises:
            InvalidInputError: there are not that many.
        """
        ...


class TaskProblems:
    """The problems of a task."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def train(self, index: int) -> Problem:
        problem = self._task.train(index)
        return Problem(problem.prompt, problem.reference, self._task.verifier)

    def held_out(self, count: int) -> Sequence[Problem]:
        problems = self._task.held_out(count)
        return [Problem(problem.prompt, problem.reference, self._task.verifier) for problem in problems]
