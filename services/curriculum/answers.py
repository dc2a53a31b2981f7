"""Answers to held-out problems, asked for through the methods that users call: Generate or Play, and Score."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Self

from routershift import wire
from routershift.client.requests import Sampling
from routershift.trajectory import Trajectory
from routershift.v1 import trajectory_pb2 as pb
from services.curriculum.problems import Problem
from services.curriculum.prompts import put
from services.curriculum.settings import Settings
from shared.clients import EnvironmentClient, GenerationClient, RewardClient
from shared.errors import PreconditionError, UnavailableError

CORRECT = "correct"


@dataclass(frozen=True, slots=True)
class Answer:
    """One response to a problem, or one episode of it, and what was said of it."""

    trajectory: Trajectory
    parts: dict[str, float]  # of the reward; `correct` is 1 or 0


class Answers:
    """Asks for answers and has them judged. Opens its connections with the block."""

    def __init__(self, tables: Settings) -> None:
        settings, access = tables.curriculum, tables.access
        patience = settings.evaluation.answer_seconds
        self._run_id = tables.run.id
        self._generation = GenerationClient(settings.generation_address, patience, access)
        self._environments = EnvironmentClient(settings.environments_address, patience, access)
        self._reward = RewardClient(settings.reward_address, patience, access)
        self._opened = AsyncExitStack()

    async def __aenter__(self) -> Self:
        for client in (self._generation, self._environments, self._reward):
            await self._opened.enter_async_context(client)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._opened.aclose()

    async def of(self, problem: Problem, name: str, requests: Sequence[Sampling]) -> list[Answer]:
        """Those of each request, in order.

        Args:
            name: of the prompt, where the problem is played as episodes.
            requests: how to sample.

        Raises:
            UnavailableError, DeadlineError, OverloadedError: a service gave no answer, or no reward for one.
            PreconditionError: who judges does not say what a success is.
        """
        ask = self._episodes if problem.environment else self._responses
        asked = await asyncio.gather(*(ask(problem, name, request) for request in requests))
        trajectories = [trajectory for each, _ in asked for trajectory in each]
        scores = [score for _, each in asked for score in each]
        if problem.verifier:
            scores = await self._reward.score(problem.verifier, problem.prompt, trajectories, problem.reference)
        if unscored := [s for s in scores if s.outcome != pb.OUTCOME_SCORED]:
            raise UnavailableError(
                f"{len(unscored)} of {len(scores)} held-out responses not scored: {unscored[0].error}"
            )
        if unjudged := next((s for s in scores if CORRECT not in s.parts), None):
            who = f"verifier {problem.verifier}" if problem.verifier else f"environment {problem.environment}"
            raise PreconditionError(
                f"{who} gives no part `{CORRECT}`, but {', '.join(unjudged.parts) or 'none'}; an evaluation needs it, "
                "1 for a success and 0 for none"
            )
        return [Answer(t, dict(s.parts)) for t, s in zip(trajectories, scores, strict=True)]

    async def _responses(
        self, problem: Problem, name: str, request: Sampling
    ) -> tuple[list[Trajectory], list[pb.Score]]:
        completions = await self._generation.generate(problem.token_ids or problem.prompt, **request)
        return [Trajectory(completion) for completion in completions], []

    async def _episodes(
        self, problem: Problem, name: str, request: Sampling
    ) -> tuple[list[Trajectory], list[pb.Score]]:
        group = await self._environments.play(put(problem, self._run_id, name, pb.SamplingParams(**request)))
        scores = [] if problem.verifier else [message.score for message in group.trajectories]
        return [wire.decode_trajectory(message) for message in group.trajectories], scores
