"""Held-out accuracy, measured through the methods that users call."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from math import comb
from statistics import fmean
from typing import Any

import numpy as np

from routershift.client.requests import Sampling
from services.curriculum.answers import CORRECT, Answer, Answers
from services.curriculum.problems import HeldOutSet, Problem
from services.curriculum.settings import Settings
from shared.tracing import spans
from shared.tracing.kinds import EVALUATE


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Accuracy on a held-out set, sampled and greedy."""

    set: str  # the held-out set, by name
    main: bool  # whether it decides which version is the best
    version: int  # the one evaluated; while training goes on, later ones answer some of the problems
    oldest_version: int  # of those that sampled a token
    newest_version: int
    problems: int
    samples: int  # sampled responses in all
    accuracy: float  # pass@1: the share of correct ones among them
    pass_at_k: dict[int, float]
    greedy_accuracy: float | None  # of one response a problem; None where none was asked for
    valid: float  # share of the sampled responses that are well-formed; 1 where the verifier does not say
    mean_tokens: float  # that the model sampled in a response
    mean_turns: float  # of the model in a sampled response; 1 where there is no environment
    seconds: float

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


async def _unheard(answered: int) -> None: ...


async def evaluate(
    held_out: HeldOutSet,
    version: int,
    tables: Settings,
    main: bool = True,
    report: Callable[[int], Awaitable[None]] = _unheard,
) -> Evaluation:
    """Answers and scores every problem. The same seeds each time, so that two versions see the same draws.

    Args:
        held_out: the set.
        version: the one that the evaluation is of, which generation serves.
        tables: settings.
        main: whether this set decides which version is the best.
        report: is told how many problems are answered and scored, after each.

    Raises:
        UnavailableError, DeadlineError, OverloadedError: a service gave no answer, or could not score a response; a
            partial accuracy would be a wrong one.
    """
    began = time.perf_counter()
    settings = tables.curriculum.evaluation
    requests, n = held_out.sampling.requests(tables.rollout), held_out.sampling.n
    limit, reporting, done = asyncio.Semaphore(settings.concurrency), asyncio.Lock(), 0
    async with Answers(tables) as answers:

        async def answer(index: int, problem: Problem) -> list[Answer]:
            """Those of each request, in order."""
            nonlocal done
            async with limit:
                with spans.root(EVALUATE) as span:
                    span.set({"set": held_out.name, "version": version})
                    seeded = [request | Sampling(seed=index * n) for request in requests]
                    found = await answers.of(problem, f"{held_out.name}-{index}", seeded)
            done += 1
            async with reporting:  # one after the other, or an older number might be written last
                await report(done)
            return found

        found = await asyncio.gather(*(answer(i, problem) for i, problem in enumerate(held_out.problems)))
    versions = [s.version for each in found for a in each for s in a.trajectory.completion.versions]
    correct = np.array([[answer.parts[CORRECT] == 1 for answer in each] for each in found])
    sampled = [answer for each in found for answer in each[:n]]
    return Evaluation(
        set=held_out.name,
        main=main,
        version=version,
        oldest_version=min(versions),
        newest_version=max(versions),
        problems=len(held_out.problems),
        samples=len(sampled),
        accuracy=float(correct[:, :n].mean()),
        pass_at_k={k: fmean(pass_at_k(n, int(c), k) for c in correct[:, :n].sum(1)) for k in held_out.pass_at_k},
        greedy_accuracy=float(correct[:, -1].mean()) if len(requests) > 1 else None,
        valid=fmean(answer.parts.get("valid", 1.0) for answer in sampled),
        mean_tokens=fmean(answer.trajectory.completion.token_ids.size for answer in sampled),
        mean_turns=fmean(len(answer.trajectory.turns) for answer in sampled),
        seconds=time.perf_counter() - began,
    )


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Chance that k of these samples hold a correct one: an unbiased estimate of that of k fresh ones.

    Equation 1 of arXiv 2107.03374: 1 - C(n - c, k) / C(n, k), for k up to n.
    """
    return 1 - comb(samples - correct, k) / comb(samples, k)
