"""What the curriculum handles, wherever it comes from: problems, held-out sets, and how to get at them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from routershift.client.requests import Message
from services.curriculum.held_out import EvaluationSampling
from services.curriculum.settings import Settings
from services.curriculum.tasks import base
from services.curriculum.tasks.base import Task
from shared.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Problem:
    """One prompt, what is known of its right answer, and who judges."""

    prompt: str  # as verifiers see it
    reference: Mapping[str, Any]  # what the verifier compares a response with, in the form that this verifier reads
    verifier: str  # by its name in [reward.verifiers]; "" where the environment rewards
    id: str = ""  # the row that it was made of; "" where a task has no rows
    token_ids: tuple[int, ...] = ()  # what the policy reads; empty: generation tokenizes the prompt
    environment: str = ""  # that the responses are episodes of; "" where each is one turn
    messages: tuple[Message, ...] = ()  # the conversation, for an environment that renders it with its tools
    priority: float = 1.0  # share of its turns in which the strategy `priority` takes it, 0 to 1


@dataclass(frozen=True, slots=True)
class HeldOutSet:
    """Problems that are never trained on, and how they are evaluated."""

    name: str  # in records and metrics
    problems: Sequence[Problem]
    sampling: EvaluationSampling
    pass_at_k: tuple[int, ...]  # each at most sampling.n
    every: int  # versions between evaluations; 0: first and last only


class Problems(Protocol):
    """Training problems by index, and held-out sets, as the worker and the evaluation ask for them."""

    def train(self, index: int) -> Problem:
        """Training problem `index`, counted from 0: it follows from `run.seed` and the index. There is no last one."""
        ...

    def held_out(self) -> Sequence[HeldOutSet]:
        """At least one set, the same for every seed, of problems that `train` never gives. The first decides the best.

        Raises:
            InvalidInputError: there are not as many problems as the settings ask for.
        """
        ...


class TaskProblems:
    """The problems of a task. Its one held-out set has the name of the task."""

    def __init__(self, task: Task, settings: Settings) -> None:
        self._task = task
        self._every = settings.run.evaluate_every
        self._evaluation = settings.curriculum.evaluation

    def train(self, index: int) -> Problem:
        problem = self._task.train(index)
        # A task has no rows. Its prompt tells one problem from another, wherever they are drawn again.
        return replace(self._problem(problem), id=problem.prompt)

    def held_out(self) -> Sequence[HeldOutSet]:
        chosen = self._evaluation
        try:
            drawn = self._task.held_out(chosen.problems)
        except InvalidInputError as error:
            raise InvalidInputError(f"curriculum.evaluation.problems is {chosen.problems}: {error}") from None
        problems = [self._problem(problem) for problem in drawn]
        return [HeldOutSet(self._task.name, problems, chosen.sampling, chosen.pass_at, self._every)]

    def _problem(self, made: base.Problem) -> Problem:
        task = self._task
        return Problem(made.prompt, made.reference, task.verifier, environment=task.environment)
