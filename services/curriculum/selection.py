"""Which problems are trained on: strategies, and what walks the order of problems with one of them.

Problems have an order that follows from `run.seed`: turn 0, turn 1 and so on, epoch after epoch. A strategy says in
which share of its turns a problem is taken. One that is passed over has its next turn in the next epoch.
The draws follow from seed and turn, and the place in the order is kept in the transaction that admits the prompt, so a
restart passes nothing over twice and takes nothing twice.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from services.curriculum.problems import Problem, Problems
from services.curriculum.settings import SelectionSettings
from shared.errors import InvalidInputError
from shared.streams.solve_rates import SolveRate, SolveRates

TAKEN = "taken"
# Turns that are looked at together once one was passed over: each look is a call of Redis.
_TOGETHER = 32
_MOST_PASSED = 100_000  # in a row, after which nothing would ever be taken
_DRAWS = 0x5E1EC7  # keeps these draws apart from others of the seed; its value has no meaning


@dataclass(frozen=True, slots=True)
class Share:
    """In which share of its turns a problem is taken, and why it is passed over in the others."""

    share: float  # 0 to 1
    reason: str = TAKEN  # in metrics and in the run's progress


ALWAYS = Share(1.0)


class Strategy(Protocol):
    """Decides by what is known of a problem, and has no memory of its own."""

    @property
    def uses_solve_rates(self) -> bool: ...

    def share(self, problem: Problem, known: SolveRate | None) -> Share:
        """Args: known: how the problem is solved; None where it was never judged, or nobody asked."""
        ...


class Uniform:
    """Takes every problem in its turn."""

    uses_solve_rates = False

    def share(self, problem: Problem, known: SolveRate | None) -> Share:
        return ALWAYS


@dataclass(frozen=True, slots=True)
class Dynamic:
    """Sets aside problems whose last responses had equal rewards: all solve it, or none, and nothing is to be learnt.

    As dynamic sampling of DAPO (arXiv 2503.14476, section 3.2), but before anything is sampled.
    """

    retry: float
    uses_solve_rates = True

    def share(self, problem: Problem, known: SolveRate | None) -> Share:
        if known is None or not known.equal:
            return ALWAYS
        return Share(self.retry, "solved" if known.rate >= 0.5 else "unsolved")


@dataclass(frozen=True, slots=True)
class Difficulty:
    """Takes problems whose running solve rate lies in a window; others are tried again now and then."""

    low: float
    high: float
    retry: float
    uses_solve_rates = True

    def share(self, problem: Problem, known: SolveRate | None) -> Share:
        if known is None or self.low <= known.rate <= self.high:
            return ALWAYS
        return Share(self.retry, "too_hard" if known.rate < self.low else "too_easy")


class Priority:
    """Takes each problem in the share of its turns that its row says."""

    uses_solve_rates = False

    def share(self, problem: Problem, known: SolveRate | None) -> Share:
        """Raises InvalidInputError for what is no share."""
        if not 0 <= problem.priority <= 1:  # NaN is none either
            raise InvalidInputError(
                f"priority of problem {problem.id!r} is {problem.priority}; expected the share of its turns in which "
                "it is taken, 0 to 1"
            )
        return Share(problem.priority, "priority")


def make_strategy(settings: SelectionSettings) -> Strategy:
    """That of the recipe."""
    match settings.strategy:
        case "uniform":
            return Uniform()
        case "dynamic":
            return Dynamic(settings.retry)
        case "difficulty":
            return Difficulty(settings.low, settings.high, settings.retry)
        case "priority":
            return Priority()


@dataclass(frozen=True, slots=True)
class Selected:
    """A problem to admit, and the selection as it is afterwards."""

    problem: Problem
    turn: int  # of the problem
    choices: Mapping[str, int]  # since the prompt before: one taken, and those passed over by reason
    state: Mapping[str, Any]  # for the run's progress; `select` goes on from it


class Selector:
    """Walks the order of problems."""

    def __init__(self, problems: Problems, settings: SelectionSettings, seed: int, solve_rates: SolveRates) -> None:
        self._problems = problems
        self._settings = settings
        self._seed = seed
        self._solve_rates = solve_rates
        self._strategy = make_strategy(settings)

    async def open(self) -> None:
        """Asks for solve rates where the strategy decides by them."""
        if self._strategy.uses_solve_rates:
            await self._solve_rates.open(self._settings.problems)

    async def select(self, state: Mapping[str, Any] | None) -> Selected:
        """The next problem to admit.

        Args:
            state: of the problem admitted last; None before the first.

        Raises:
            InvalidInputError: nothing would ever be taken.
        """
        first = turn = state["turns"] if state else 0
        choices: Counter[str] = Counter()
        while turn - first < _MOST_PASSED:
            turns = range(turn, turn + (_TOGETHER if choices else 1))
            problems = [self._problems.train(each) for each in turns]
            for turn, problem, known in zip(turns, problems, await self._known(problems), strict=True):
                share = self._strategy.share(problem, known)
                if share.share == 1 or self._draw(turn) < share.share:
                    choices[TAKEN] = 1
                    return Selected(problem, turn, choices, self._after(state, turn + 1, choices))
                choices[share.reason] += 1
            turn += 1
        raise InvalidInputError(
            f"curriculum.selection.strategy {self._settings.strategy!r} has passed over {_MOST_PASSED} problems in a "
            f"row ({dict(choices)}): it takes none of them"
        )

    async def _known(self, problems: list[Problem]) -> list[SolveRate | None]:
        if not self._strategy.uses_solve_rates:
            return [None] * len(problems)
        return await self._solve_rates.read([problem.id for problem in problems])

    def _draw(self, turn: int) -> float:
        """Uniform in [0, 1)."""
        return float(np.random.default_rng((_DRAWS, self._seed, turn)).random())

    def _after(self, state: Mapping[str, Any] | None, turns: int, choices: Mapping[str, int]) -> Mapping[str, Any]:
        before = state["choices"] if state else {}
        return {
            "strategy": self._settings.strategy,
            "turns": turns,
            "choices": dict(Counter(before) + Counter(choices)),
        }
