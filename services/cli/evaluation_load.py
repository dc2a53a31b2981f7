"""Whether the services take as much at once as an evaluation asks of them."""

from collections.abc import Iterator
from dataclasses import dataclass

from services.cli.recipe import Recipe
from services.curriculum.data.settings import SourceSettings
from services.curriculum.held_out import HeldOutSettings
from services.curriculum.tasks.registry import tasks
from shared.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class _Set:
    """A held-out set: whose settings it has, and who answers and judges its problems."""

    where: str  # the table of its settings
    how: HeldOutSettings
    is_played: bool
    is_judged: bool


def check_load(recipe: Recipe) -> str:
    """What an evaluation asks at once, in words.

    A service refuses what is more than it takes, and an evaluation of which a part was refused says nothing.

    Raises:
        InvalidInputError: it is more than a service takes, even where nobody else asks.
    """
    concurrency = recipe.curriculum.evaluation.concurrency
    generation, reward, environments = recipe.generation, recipe.reward, recipe.environments
    most = 0
    for each in _sets(recipe):
        requests = each.how.sampling.requests(recipe.rollout)
        responses = sum(request["n"] for request in requests)
        problems = min(concurrency, each.how.problems)
        most = max(most, problems * responses)
        sequences = generation.max_num_seqs + generation.max_waiting
        _require(each, problems, responses, "responses", sequences, "generation.max_num_seqs and max_waiting together")
        if each.is_judged:
            _require(each, problems, responses, "responses", reward.max_queued, "reward.max_queued")
        if each.is_played:
            _require(each, problems, len(requests), "groups", environments.max_plays, "environments.max_plays")
    return f"at most {most} responses at once, to {concurrency} problems"


def _require(held_out: _Set, problems: int, each: int, what: str, allowed: int, setting: str) -> None:
    if (asked := problems * each) <= allowed:
        return
    lower = f", or lower the concurrency to {allowed // each}" if allowed >= each else ""
    raise InvalidInputError(
        f"curriculum.evaluation.concurrency is {problems}, and with {held_out.where}.sampling that is {asked} {what} "
        f"at once, {each} of each problem; allowed by {setting}: {allowed}; raise that to {asked}{lower}"
    )


def _sets(recipe: Recipe) -> Iterator[_Set]:
    evaluation = recipe.curriculum.evaluation
    if recipe.run.task is not None:
        if (task := tasks().get(recipe.run.task)) is None:  # the check of the task says so
            return
        yield _Set("curriculum.evaluation", evaluation, bool(task.environment), bool(task.verifier))
    elif recipe.data.eval:
        for i, source in enumerate(recipe.data.eval):
            yield _Set(f"data.eval.{i}", source, *_treated(source))
    else:  # a part of what it trains on
        for trained in recipe.data.train:
            yield _Set("curriculum.evaluation", evaluation, *_treated(trained))


def _treated(source: SourceSettings) -> tuple[bool, bool]:
    """Whether its rows are played, and whether a verifier judges them."""
    return source.environment is not None, source.verifier is not None or "verifier" in source.columns
