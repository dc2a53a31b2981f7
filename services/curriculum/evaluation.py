"""Held-out accuracy, measured through the doors that users have: Generate and Score."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from google.protobuf import struct_pb2

from routershift.v1 import trajectory_pb2 as pb
from services.curriculum.settings import Settings
from services.curriculum.tasks import Problem
from shared.clients import GenerationClient, RewardClient
from shared.errors import UnavailableError

_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Sampled pass@1 over held-out problems, at the temperature of training."""

    version: int  # the oldest that sampled a token of it
    newest_version: int
    problems: int
    samples: int  # responses in all
    accuracy: float
    valid: float  # share of responses that are well-formed, right or wrong
    mean_tokens: float
    seconds: float

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


async def evaluate(problems: Sequence[Problem], tables: Settings) -> Evaluation:
    """Samples and scores every problem. The same seeds each time, so that two versions see the same draws.

    Raises:
        UnavailableError: a response could not be scored; a partial accuracy would be a wrong one.
    """
    began = time.perf_counter()
    run, settings = tables.run, tables.curriculum
    limit = asyncio.Semaphore(settings.evaluation_concurrency)
    async with (
        GenerationClient(settings.generation_address, _TIMEOUT_SECONDS) as generation,
        RewardClient(settings.reward_address, _TIMEOUT_SECONDS) as reward,
    ):

        async def one(index: int, problem: Problem) -> tuple[list[pb.Score], list[int], int]:
            async with limit:
                completions = await generation.generate(
                    problem.prompt,
                    n=settings.evaluation_samples,
                    temperature=run.temperature,
                    max_tokens=settings.max_tokens,
                    seed=index * settings.evaluation_samples,
                )
                scores = await reward.score(
                    run.task, problem.prompt, [c.text for c in completions], struct(problem.reference)
                )
            versions = [span.version for c in completions for span in c.versions]
            return scores, versions, sum(c.token_ids.size for c in completions)

        results = await asyncio.gather(*(one(i, p) for i, p in enumerate(problems)))
    scores = [score for each, _, _ in results for score in each]
    if unscored := [s for s in scores if s.outcome != pb.OUTCOME_SCORED]:
        raise UnavailableError(f"{len(unscored)} of {len(scores)} held-out responses not scored: {unscored[0].error}")
    versions = [version for _, each, _ in results for version in each]
    return Evaluation(
        version=min(versions),
        newest_version=max(versions),
        problems=len(problems),
        samples=len(scores),
        accuracy=sum(s.parts["correct"] for s in scores) / len(scores),
        valid=sum(s.parts["valid"] for s in scores) / len(scores),
        mean_tokens=sum(tokens for _, _, tokens in results) / len(scores),
        seconds=time.perf_counter() - began,
    )


def struct(values: dict[str, Any]) -> struct_pb2.Struct:
    message = struct_pb2.Struct()
    message.update(values)
    return message
