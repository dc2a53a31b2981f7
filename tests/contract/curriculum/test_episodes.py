"""Evaluation of problems with an environment: episodes come from Play, of a double that is written by hand here."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from routershift import wire
from routershift.trajectory import Completion, FinishReason, Role, Segment, Trajectory, VersionSpan
from routershift.v1 import environment_pb2 as env
from routershift.v1 import environment_pb2_grpc as env_grpc
from routershift.v1 import trajectory_pb2 as pb
from services.curriculum.evaluation import evaluate
from services.curriculum.held_out import EvaluationSampling
from services.curriculum.problems import HeldOutSet, Problem, TaskProblems
from services.curriculum.settings import Settings
from services.curriculum.tasks.calculator import Calculator
from shared.errors import PreconditionError, UnavailableError
from shared.rpc.server import Server
from shared.streams.run import Run
from tests.support.curriculum import PROBLEMS, SAMPLES, HandWritten, servers

QUESTIONS = Calculator(0).held_out(len(PROBLEMS))
SOLUTIONS = {problem.prompt: problem.solutions[0] for problem in QUESTIONS}


class OnlyPlay(env_grpc.EnvironmentServiceServicer):
    """The curriculum asks for nothing else."""

    async def Reset(self, request: env.ResetRequest, context: Any) -> env.ResetResponse:  # noqa: N802
        raise NotImplementedError

    async def Step(self, request: env.StepRequest, context: Any) -> env.StepResponse:  # noqa: N802
        raise NotImplementedError

    async def Close(self, request: env.CloseRequest, context: Any) -> env.CloseResponse:  # noqa: N802
        raise NotImplementedError

    async def ListEnvironments(  # noqa: N802
        self, request: env.ListEnvironmentsRequest, context: Any
    ) -> env.ListEnvironmentsResponse:
        raise NotImplementedError

    async def OpenEpisode(self, request: env.OpenEpisodeRequest, context: Any) -> env.OpenEpisodeResponse:  # noqa: N802
        raise NotImplementedError

    async def ClaimEpisode(self, request: env.ClaimEpisodeRequest, context: Any) -> env.ClaimEpisodeResponse:  # noqa: N802
        raise NotImplementedError

    async def RewardTurn(self, request: env.RewardTurnRequest, context: Any) -> env.RewardTurnResponse:  # noqa: N802
        raise NotImplementedError

    async def RewardEpisode(self, request: env.RewardEpisodeRequest, context: Any) -> env.RewardEpisodeResponse:  # noqa: N802
        raise NotImplementedError

    async def CloseEpisode(self, request: env.CloseEpisodeRequest, context: Any) -> env.CloseEpisodeResponse:  # noqa: N802
        raise NotImplementedError

    async def GetEpisode(self, request: env.GetEpisodeRequest, context: Any) -> env.GetEpisodeResponse:  # noqa: N802
        raise NotImplementedError


class Environments(OnlyPlay):
    """Tries one expression in each episode, reads its value, and answers: rightly in the first `right` of a group."""

    def __init__(self, right: int, score: Callable[[int], pb.Score] | None = None) -> None:
        self._right, self._score = right, score
        self.asked: list[pb.Prompt] = []

    async def Play(self, request: env.PlayRequest, context: Any) -> env.PlayResponse:  # noqa: N802
        prompt = request.prompt
        self.asked.append(prompt)
        is_greedy = prompt.sampling.temperature == 0
        group = pb.TrajectoryGroup(prompt=prompt)
        for sample in range(prompt.sampling.n):
            right = sample < (1 if is_greedy else self._right)
            name = pb.TrajectoryId(run_id=prompt.run_id, prompt_id=prompt.prompt_id, sample=sample)
            answer = SOLUTIONS[prompt.text] if right else "1+1"
            message = wire.encode_trajectory(name, episode(sample, answer))
            if self._score is not None:
                message.score.CopyFrom(self._score(sample))
            group.trajectories.append(message)
        return env.PlayResponse(group=group)


def episode(sample: int, answer: str) -> Trajectory:
    segments = (
        Segment(Role.ASSISTANT, 4, True, "2*3?"),
        Segment(Role.TOOL, 2, False, "6;"),
        Segment(Role.ASSISTANT, 3, True, answer),
    )
    spans = (VersionSpan(2, 4), VersionSpan(3, 3))
    completion = Completion(
        sample, np.arange(7, dtype=np.int32), np.zeros(7, np.float32), spans, FinishReason.STOP, None, answer
    )
    return Trajectory(completion, segments, np.array([8, 9], np.int32))


@asynccontextmanager
async def environments(double: Environments, settings: Settings) -> AsyncIterator[Settings]:
    """Settings that lead to this service too."""
    server = Server()
    env_grpc.add_EnvironmentServiceServicer_to_server(double, server.grpc)
    port = await server.listen("127.0.0.1", 0, [])
    await server.serving()
    curriculum = settings.curriculum.model_copy(update={"environments_address": f"127.0.0.1:{port}"})
    try:
        yield settings.model_copy(update={"curriculum": curriculum})
    finally:
        await server.stop(0)


def engine() -> HandWritten:
    return HandWritten(right=lambda version, index: 0)


async def test_a_verifier_judges_the_last_turn_of_each_episode(run: Run, tmp_path: Path) -> None:
    double, silent = Environments(right=3), engine()
    async with servers(silent, run, tmp_path) as settings, environments(double, settings) as settings:
        (held_out,) = TaskProblems(Calculator(0), settings).held_out()
        result = await evaluate(held_out, 3, settings)
    assert (result.set, result.problems, result.samples) == ("calculator", 6, 24)
    assert (result.accuracy, result.greedy_accuracy, result.mean_turns, result.mean_tokens) == (3 / 4, 1.0, 2.0, 7.0)
    assert result.valid == 3 / 4  # 1+1 does not use the numbers
    assert (result.oldest_version, result.newest_version) == (2, 3)
    assert silent.asked == []
    sampled = [prompt for prompt in double.asked if prompt.sampling.temperature > 0]
    assert sorted(prompt.sampling.seed for prompt in sampled) == [0, 4, 8, 12, 16, 20]
    assert {(p.environment, p.verifier, p.sampling.n, p.sampling.max_tokens) for p in sampled} == {
        ("calculator", "countdown", SAMPLES, 12)
    }
    assert {prompt.text for prompt in double.asked} == set(SOLUTIONS)
    assert all(dict(prompt.reference) for prompt in double.asked)


def rewarded(part: str) -> Callable[[int], pb.Score]:
    return lambda sample: pb.Score(outcome=pb.OUTCOME_SCORED, reward=sample, parts={part: sample})


def held_out(verifier: str = "") -> HeldOutSet:
    (question, *_) = QUESTIONS
    problem = Problem(question.prompt, question.reference, verifier, environment="calculator")
    return HeldOutSet("mazes", [problem], EvaluationSampling(n=2, greedy=False), (1,), 0)


async def test_an_environment_may_score_its_episodes_itself(run: Run, tmp_path: Path) -> None:
    double = Environments(0, rewarded("correct"))
    async with servers(engine(), run, tmp_path) as settings, environments(double, settings) as settings:
        result = await evaluate(held_out(), 0, settings)
    assert (result.accuracy, result.valid, result.greedy_accuracy) == (1 / 2, 1.0, None)


async def test_an_episode_without_a_score_is_no_wrong_answer(run: Run, tmp_path: Path) -> None:
    failed = pb.Score(outcome=pb.OUTCOME_FAILED, error="the maze fell down")
    double = Environments(0, lambda sample: failed)
    async with servers(engine(), run, tmp_path) as settings, environments(double, settings) as settings:
        with pytest.raises(UnavailableError, match="2 of 2 held-out responses not scored: the maze fell down"):
            await evaluate(held_out(), 0, settings)


async def test_an_environment_has_to_say_what_a_success_is(run: Run, tmp_path: Path) -> None:
    double = Environments(0, rewarded("steps"))
    async with servers(engine(), run, tmp_path) as settings, environments(double, settings) as settings:
        with pytest.raises(PreconditionError, match="environment calculator gives no part `correct`, but steps; "):
            await evaluate(held_out(), 0, settings)


async def test_an_evaluation_ends_with_the_error_of_the_service(run: Run, tmp_path: Path) -> None:
    class Refusing(Environments):
        async def Play(self, request: env.PlayRequest, context: Any) -> env.PlayResponse:  # noqa: N802
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, "no verifier is named")
            raise AssertionError

    async with servers(engine(), run, tmp_path) as settings, environments(Refusing(0), settings) as settings:
        with pytest.raises(PreconditionError, match="Play: no verifier is named"):
            await asyncio.wait_for(evaluate(held_out("countdown"), 0, settings), 60)
