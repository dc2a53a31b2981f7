"""Which of the kept samples to show."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from shared.errors import InvalidInputError, NotFoundError
from shared.tracking.sample import Summary
from shared.tracking.samples import Samples

Order = Literal["worst", "best", "failed"]

_NAMED = 5  # prompts that a message names


@dataclass(frozen=True, slots=True)
class Wanted:
    """What was asked for."""

    count: int
    step: int | None = None  # None: the newest trained on, or every step where `order` or `prompt` is given
    order: Order | None = None
    prompt: str | None = None  # id of a prompt or of a problem


def select(samples: Samples, wanted: Wanted) -> list[Summary]:
    """The summaries to show, in their order; none where nothing failed.

    Raises:
        InvalidInputError: fewer than one is asked for.
        NotFoundError: there are no samples, or none of this step or prompt; says what there is.
    """
    if wanted.count < 1:
        raise InvalidInputError(f"-n is {wanted.count}; it must be at least 1")
    steps = samples.steps()
    if not steps:
        raise NotFoundError(
            f"{samples.folder} has no samples yet: the first come with the first step, or with the first group that is "
            "dropped; none are kept where learner.samples.groups and learner.samples.dropped are 0"
        )
    if wanted.step is not None:
        samples.require(wanted.step)
        found = samples.summaries(wanted.step)
    elif wanted.order is None and wanted.prompt is None:
        found = _newest(samples, steps)
    else:
        found = samples.summaries()
    if wanted.prompt is not None:
        found = _of_prompt(found, wanted.prompt)
    return _ordered(found, wanted.order)[: wanted.count]


def _newest(samples: Samples, steps: Sequence[int]) -> list[Summary]:
    """Those of the newest step that was trained on; the one that is being collected has only what was dropped."""
    for step in reversed(steps):
        found = samples.summaries(step)
        if any(each.is_trained for each in found):
            return found
    return samples.summaries(steps[-1])


def _of_prompt(found: Sequence[Summary], prompt: str) -> list[Summary]:
    chosen = [each for each in found if prompt in (each.prompt_id, each.group, each.problem, each.trajectory)]
    if not chosen:
        known = list(dict.fromkeys(name for each in found for name in (each.prompt_id, each.problem) if name))
        more = f" and {len(known) - _NAMED} more" if len(known) > _NAMED else ""
        raise NotFoundError(
            f"--prompt is {prompt!r}; samples are kept of the prompts and problems {', '.join(known[:_NAMED])}{more}"
        )
    return chosen


def _ordered(found: Sequence[Summary], order: Order | None) -> list[Summary]:
    """By reward, and of equal ones the newest first; what failed, the newest first; else those trained on first."""
    if order is None:
        return sorted(found, key=lambda each: (each.step, not each.is_trained))
    newest = sorted(found, key=lambda each: -each.step)
    if order == "failed":
        return [each for each in newest if not each.is_trained]
    rewarded = [each for each in newest if each.reward is not None]
    return sorted(rewarded, key=lambda each: each.reward or 0.0, reverse=order == "best")
