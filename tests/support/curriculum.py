"""An engine that answers by a table, and a curriculum that evaluates it through real servers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from routershift.trajectory import Completion, FinishReason, VersionSpan
from routershift.v1 import generation_pb2_grpc as gen_grpc
from services.curriculum.held_out import EvaluationSampling
from services.curriculum.problems import Problems, TaskProblems
from services.curriculum.settings import CurriculumSettings, EvaluationSettings, Settings
from services.curriculum.tasks.countdown import Countdown, Problem
from services.curriculum.worker import CurriculumWorker
from services.generation.engines.base import EngineInfo, EngineLoad, EngineSampling, Weights
from services.generation.requests.validation import Requests
from services.generation.server import GenerationServicer
from services.generation.weights.loader import WeightsLoader
from services.reward.service import RewardService
from services.reward.settings import Settings as RewardTables
from shared.rpc.server import Server
from shared.settings import RolloutSettings, RunSettings
from shared.streams.progress import Progress
from shared.streams.run import TRAINING, Run
from shared.tracking import records
from tests.support.models import EOS, MAX_MODEL_LEN, VOCABULARY, build_tokenizer

SAMPLES = 4
EVERY = 10
TASK = Countdown(0)
PROBLEMS: list[Problem] = TASK.held_out(6)
INDEX = {problem.prompt: i for i, problem in enumerate(PROBLEMS)}
TOKENIZER = build_tokenizer()
INFO = EngineInfo("hand-written", "table", VOCABULARY, MAX_MODEL_LEN, (EOS,), None)
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
async def servers(engine: HandWritten, run: Run, folder: Path) -> AsyncIterator[Settings]:
    """Generation with this engine and the reward service, and settings that lead to them."""
    TOKENIZER.save_pretrained(folder)
    common = RunSettings(
        id="hand", folder=folder, model=folder, task="countdown", evaluate_every=EVERY, groups_per_step=2
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
            rollout=RolloutSettings(max_tokens=12, temperature=0.7),
            curriculum=CurriculumSettings(
                evaluation=EvaluationSettings(
                    problems=len(PROBLEMS), sampling=EvaluationSampling(n=SAMPLES), pass_at_k=(1, 2, 4)
                ),
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
        await self.run.report_progress(Progress(version=version, phase=phase))

    async def until(self, name: str, version: int) -> None:
        """Waits for this in the run's progress."""

        async def there() -> bool:
            return bool(getattr(await self.run.progress(), name) == version)

        await until(there)

    @property
    def evaluated(self) -> list[int]:
        return [record["version"] for record in records.read(self.settings.run.path / records.EVALUATIONS)]


@asynccontextmanager
async def training(
    engine: HandWritten, run: Run, folder: Path, problems: Problems | None = None
) -> AsyncIterator[Training]:
    """Args: problems: default: those of the task, with its one held-out set."""
    async with servers(engine, run, folder) as settings:
        worker = CurriculumWorker(settings, problems or TaskProblems(TASK, settings), run)
        await worker.evaluate_start()
        task = asyncio.create_task(worker.evaluate_versions())
        yield Training(engine, run, settings)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
