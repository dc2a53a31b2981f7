"""The curriculum behind real doors: a policy written by hand answers, so that every number is known beforehand."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from routershift.v1 import generation_pb2_grpc as gen_grpc
from routershift.v1 import trajectory_pb2 as pb
from services.curriculum.evaluation import evaluate
from services.curriculum.settings import CurriculumSettings, Settings
from services.curriculum.tasks.countdown import Countdown, Problem
from services.curriculum.worker import CurriculumWorker
from services.generation.engines.base import EngineInfo, EngineLoad, EngineSampling, Weights
from services.generation.requests.validation import Requests
from services.generation.server import GenerationServicer
from services.generation.weights.loader import WeightsLoader
from services.reward.service import RewardService
from services.reward.settings import Settings as RewardTables
from shared.errors import DeadlineError, PreconditionError
from shared.rpc.server import Server
from shared.settings import RunSettings
from shared.streams.keys import Stream
from shared.streams.run import FINISHED, TRAINING, Run
from shared.tracking import records
from shared.trajectory import Completion, FinishReason, VersionSpan
from shared.weights import published
from tests.support.models import EOS, MAX_MODEL_LEN, VOCABULARY, build_tokenizer

SAMPLES = 4
EVERY = 10
TASK = Countdown(0)
PROBLEMS: list[Problem] = TASK.held_out(6)
INDEX = {problem.prompt: i for i, problem in enumerate(PROBLEMS)}
TOKENIZER = build_tokenizer()
INFO = EngineInfo("hand-written", "table", VOCABULARY, MAX_MODEL_LEN, EOS, None)
IDLE = EngineLoad(0, 0)


async def nothing() -> None: ...


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110  # another task's progress in Redis has no event
            await asyncio.sleep(0.01)


@dataclass
class HandWritten:
    """An engine whose policy is two tables: how many samples are right, and whether the greedy one is."""

    right: Callable[[int, int], int]  # of a version, to a problem
    greedy: Callable[[int, int], bool] = lambda version, index: False
    before: Callable[[], Awaitable[None]] = nothing  # each request
    version: int = 0
    asked: list[EngineSampling] = field(default_factory=list)
    info: EngineInfo = INFO
    load: EngineLoad = IDLE

    async def start(self) -> None: ...

    async def generate(self, prompt: list[int], sampling: EngineSampling) -> list[Completion]:
        self.asked.append(sampling)
        await self.before()
        index = INDEX[str(TOKENIZER.decode(prompt))]
        is_greedy = sampling.temperature == 0
        right = int(self.greedy(self.version, index)) if is_greedy else self.right(self.version, index)
        solution = PROBLEMS[index].solutions[0]
        return [self._completion(i, solution if i < right else "1+1") for i in range(sampling.n)]

    def _completion(self, index: int, text: str) -> Completion:
        tokens = np.array([*TOKENIZER(text).input_ids, EOS], np.int32)
        spans = (VersionSpan(self.version, tokens.size),)
        return Completion(index, tokens, np.zeros(tokens.size, np.float32), spans, FinishReason.STOP, None)

    async def stream(self, prompt: list[int], sampling: EngineSampling) -> AsyncIterator[Completion]:
        for completion in await self.generate(prompt, sampling):
            yield completion

    async def update_weights(self, version: int, weights: Weights) -> float:
        self.version = version
        return 0.0

    async def healthy(self) -> bool:
        return True

    async def close(self) -> None: ...


@asynccontextmanager
async def doors(engine: HandWritten, run: Run, folder: Path) -> AsyncIterator[Settings]:
    """Generation with this engine and the reward service, and settings that lead to them."""
    TOKENIZER.save_pretrained(folder)
    common = RunSettings(
        id="hand", folder=folder, model=folder, max_tokens=12, temperature=0.7, evaluate_every=EVERY, groups_per_step=2
    )
    generation, reward, servicer = Server(), Server(), GenerationServicer()
    gen_grpc.add_GenerationServiceServicer_to_server(servicer, generation.grpc)
    servicer.open(engine, Requests(folder, engine.info, 100), WeightsLoader(engine, folder))
    judge = RewardService(RewardTables(run=common))
    ports = [
        await server.listen("127.0.0.1", 0, n) for server, n in ((generation, []), (reward, judge.register(reward)))
    ]
    await judge.start(run)
    for server in (generation, reward):
        await server.serving()
    try:
        yield Settings(
            run=common,
            curriculum=CurriculumSettings(
                evaluation_problems=len(PROBLEMS),
                evaluation_samples=SAMPLES,
                pass_at_k=(1, 2, 4),
                generation_address=f"127.0.0.1:{ports[0]}",
                reward_address=f"127.0.0.1:{ports[1]}",
                poll_seconds=0.01,
            ),
        )
    finally:
        for server in (generation, reward):
            await server.stop(0)
        await judge.close()


@dataclass
class Training:
    """What the learner and generation would do, step by step, around a curriculum that evaluates."""

    engine: HandWritten
    run: Run
    settings: Settings

    async def publish(self, version: int, phase: str = TRAINING) -> None:
        self.engine.version = version
        await self.run.report_progress(version=version, phase=phase)

    async def until(self, name: str, version: int) -> None:
        """Waits for this in the run's progress."""

        async def there() -> bool:
            return (await self.run.progress()).get(name) == str(version)

        await until(there)

    @property
    def evaluated(self) -> list[int]:
        return [record["version"] for record in records.read(self.settings.run.path / records.EVALUATIONS)]


@asynccontextmanager
async def training(engine: HandWritten, run: Run, folder: Path) -> AsyncIterator[Training]:
    async with doors(engine, run, folder) as settings:
        worker = CurriculumWorker(settings, TASK, run)
        await worker.evaluate_start()
        task = asyncio.create_task(worker.evaluate_versions())
        yield Training(engine, run, settings)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_sampled_and_greedy_accuracy_are_those_of_the_policy(run: Run, tmp_path: Path) -> None:
    engine = HandWritten(
        right=lambda version, index: (0, 1, 2, 3, 4, 0)[index], greedy=lambda version, index: index < 3
    )
    async with doors(engine, run, tmp_path) as settings:
        result = await evaluate(PROBLEMS, TASK.verifier, 0, settings)
    assert (result.problems, result.samples) == (6, 24)
    assert result.accuracy == result.valid == 10 / 24
    assert result.greedy_accuracy == 3 / 6
    # One of two draws without replacement from 4 samples with c right ones: 0, 1/2, 5/6, 1, 1, 0.
    assert result.pass_at_k == pytest.approx({1: 10 / 24, 2: (1 / 2 + 5 / 6 + 1 + 1) / 6, 4: 4 / 6})
    sampled = [asked for asked in engine.asked if asked.temperature > 0]
    greedy = [asked for asked in engine.asked if asked.temperature == 0]
    assert {(asked.n, round(asked.temperature, 4), asked.max_tokens) for asked in sampled} == {(SAMPLES, 0.7, 12)}
    assert sorted(asked.seed or 0 for asked in sampled) == [0, 4, 8, 12, 16, 20]  # no two samples share a draw
    assert {(asked.n, asked.max_tokens) for asked in greedy} == {(1, 12)}
    assert len(greedy) == len(PROBLEMS)


async def test_an_evaluation_says_which_versions_answered(run: Run, tmp_path: Path) -> None:
    async def move_on() -> None:
        if len(engine.asked) == 5:
            engine.version = 13

    engine = HandWritten(right=lambda version, index: 1, before=move_on, version=10)
    async with doors(engine, run, tmp_path) as settings:
        result = await evaluate(PROBLEMS, TASK.verifier, 10, settings)
    assert (result.version, result.oldest_version, result.newest_version) == (10, 10, 13)


async def test_the_start_every_multiple_and_the_end_are_evaluated_and_the_first_best_is_named(
    run: Run, tmp_path: Path
) -> None:
    right = {0: 1, 10: 3, 20: 3, 25: 2}
    async with training(HandWritten(right=lambda version, index: right[version]), run, tmp_path) as all_of_it:
        assert all_of_it.evaluated == [0]
        for version in (10, 20):
            await all_of_it.publish(version)
            await all_of_it.until("evaluated_version", version)
        await all_of_it.publish(25, FINISHED)
        await all_of_it.until("final_evaluation", 25)
        assert all_of_it.evaluated == [0, 10, 20, 25]
    progress = await run.progress()
    assert (progress["best_version"], float(progress["best_accuracy"])) == ("10", 3 / SAMPLES)
    assert (float(progress["accuracy"]), float(progress["greedy_accuracy"])) == (2 / SAMPLES, 0.0)


async def test_a_version_is_protected_from_its_publication_until_something_better_is_known(
    run: Run, tmp_path: Path
) -> None:
    during: list[set[int]] = []

    async def move_on() -> None:
        if engine.version == 10:
            await run.report_progress(version=35)
            during.append(published.protected_versions(await run.progress(), 35, EVERY))

    engine = HandWritten(right=lambda version, index: version > 0, before=move_on)
    async with training(engine, run, tmp_path) as all_of_it:
        await all_of_it.publish(10)
        await all_of_it.until("evaluated_version", 10)
        assert during == [{0, 10, 30}] * 12
        assert published.protected_versions(await run.progress(), 35, EVERY) == {10, 30}


async def test_a_multiple_that_training_has_left_behind_is_passed_over(run: Run, tmp_path: Path) -> None:
    async def move_on() -> None:
        if engine.version == 10:
            await all_of_it.publish(23)

    engine = HandWritten(right=lambda version, index: 1, before=move_on)
    async with training(engine, run, tmp_path) as all_of_it:
        await all_of_it.publish(10)
        await all_of_it.until("evaluated_version", 10)
        await asyncio.sleep(0.2)  # many looks at version 23
        await all_of_it.publish(30)
        await all_of_it.until("evaluated_version", 30)
        assert all_of_it.evaluated == [0, 10, 30]


async def test_an_evaluation_that_fails_costs_only_itself(run: Run, tmp_path: Path) -> None:
    async def refuse() -> None:
        if engine.version == 10:
            raise PreconditionError("broken weights")

    async def refused() -> bool:
        return len(engine.asked) > 2 * len(PROBLEMS)

    engine = HandWritten(right=lambda version, index: 1, before=refuse)
    async with training(engine, run, tmp_path) as all_of_it:
        await all_of_it.publish(10)
        await until(refused)
        await all_of_it.publish(20)
        await all_of_it.until("evaluated_version", 20)
        assert all_of_it.evaluated == [0, 20]


async def test_a_service_that_is_being_restarted_is_waited_for(run: Run, tmp_path: Path) -> None:
    """Generation goes away in the midst of each evaluation. No channel repeats a call whose deadline has passed."""
    failures = 0

    async def go_away() -> None:
        nonlocal failures
        if len(engine.asked) == 7:
            failures += 1
            raise DeadlineError("the engine is silent")

    engine = HandWritten(right=lambda version, index: 1, before=go_away)
    async with training(engine, run, tmp_path) as all_of_it:
        assert (failures, all_of_it.evaluated) == (1, [0])
        engine.asked.clear()
        await all_of_it.publish(10)
        await all_of_it.until("evaluated_version", 10)
        assert (failures, all_of_it.evaluated) == (2, [0, 10])


async def test_the_first_evaluation_gives_up_with_the_reason(run: Run, tmp_path: Path) -> None:
    async def go_away() -> None:
        raise DeadlineError("the engine is silent")

    async with doors(HandWritten(right=lambda version, index: 1, before=go_away), run, tmp_path) as settings:
        curriculum = settings.curriculum.model_copy(update={"patience_seconds": 0.0})
        worker = CurriculumWorker(settings.model_copy(update={"curriculum": curriculum}), TASK, run)
        with pytest.raises(
            DeadlineError, match=r"version 0 is not evaluated after \d+ s: Generate: the engine is silent"
        ):
            await worker.evaluate_start()
    assert "evaluated_version" not in await run.progress()


async def test_a_restart_evaluates_nothing_twice(run: Run, tmp_path: Path) -> None:
    engine = HandWritten(right=lambda version, index: 1)
    async with training(engine, run, tmp_path) as first:
        await first.publish(10)
        await first.until("evaluated_version", 10)
    async with training(engine, run, tmp_path) as second:
        await second.publish(20)
        await second.until("evaluated_version", 20)
        assert second.evaluated == [0, 10, 20]


async def test_the_memory_of_redis_is_watched(run: Run, redis: Redis, tmp_path: Path) -> None:
    limit = 8 << 30
    await redis.config_set("maxmemory", limit)
    async with doors(HandWritten(right=lambda version, index: 0), run, tmp_path) as settings:
        watching = asyncio.create_task(CurriculumWorker(settings, TASK, run).watch())

        async def watched() -> bool:
            return REGISTRY.get_sample_value("routershift_redis_memory_limit_bytes") == limit

        try:
            await until(watched)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
            await redis.config_set("maxmemory", 0)
    assert 0 < (REGISTRY.get_sample_value("routershift_redis_memory_bytes") or 0) < limit


async def test_prompts_ask_for_what_the_run_says(run: Run, tmp_path: Path) -> None:
    async with doors(HandWritten(right=lambda version, index: 0), run, tmp_path) as settings:
        feeding = asyncio.create_task(CurriculumWorker(settings, TASK, run).feed())

        async def fed() -> bool:
            return await run.tickets_held() == settings.run.tickets

        await until(fed)
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
    entries = await run.consumer(Stream.PROMPTS).read(100)
    prompts = [pb.Prompt.FromString(entry.payload) for entry in entries]
    assert len(prompts) == settings.run.tickets == 6
    assert {(p.sampling.n, p.sampling.max_tokens, round(p.sampling.temperature, 4)) for p in prompts} == {(8, 12, 0.7)}
    assert [p.sampling.seed for p in prompts] == list(range(0, 48, 8))
    assert not {p.text for p in prompts} & INDEX.keys()
