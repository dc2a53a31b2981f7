"""A curriculum of rows that feeds a run, as a process that a test may kill at any moment.

python -m tests.support.feeding REDIS_URL RUN_ID FOLDER STRATEGY
"""

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from routershift.v1 import trajectory_pb2 as pb
from services.curriculum.data.settings import DataSettings, TrainSettings
from services.curriculum.held_out import EvaluationSampling
from services.curriculum.problems import HeldOutSet, Problem
from services.curriculum.settings import CurriculumSettings, SelectionSettings, Settings
from services.curriculum.worker import CurriculumWorker
from shared.settings import RedisSettings, RunSettings, StreamSettings
from shared.streams.connection import connect
from shared.streams.entries import End
from shared.streams.keys import Stream
from shared.streams.run import Run

ROWS = 50


class Rows:
    """Rows by name, in another order each epoch."""

    def __init__(self, rows: int = ROWS, priorities: Sequence[float] = ()) -> None:
        self._rows = rows
        self._priorities = priorities or [1.0] * rows

    def train(self, index: int) -> Problem:
        epoch, place = divmod(index, self._rows)
        row = int(np.random.default_rng(epoch).permutation(self._rows)[place])
        return Problem(f"prompt {row}", {}, "exact", id=f"row-{row}", priority=self._priorities[row])

    def held_out(self) -> Sequence[HeldOutSet]:
        return [HeldOutSet("none", [], EvaluationSampling(), (), 0)]


def tables(run_id: str, folder: Path, selection: SelectionSettings, groups_per_step: int = 2) -> Settings:
    columns = {"prompt": "question", "reference": "answer", "priority": "priority"}
    source = TrainSettings(source="rows.jsonl", columns=columns, verifier="exact")  # `Rows` stands in for the file
    return Settings(
        run=RunSettings(id=run_id, folder=folder, model=folder, groups_per_step=groups_per_step),
        curriculum=CurriculumSettings(poll_seconds=0.001, selection=selection),
        data=DataSettings(train=(source,)),
    )


async def main(url: str, run_id: str, folder: str, strategy: str) -> None:
    redis = await connect(RedisSettings.model_validate({"url": url}))
    run = Run(redis, run_id, StreamSettings(block_seconds=0.05))
    selection = SelectionSettings.model_validate({"strategy": strategy})
    await CurriculumWorker(tables(run_id, Path(folder), selection), Rows(), run).feed()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))


async def end_prompts(run: Run, count: int) -> list[pb.Prompt]:
    """Reads so many prompts and ends their groups, which frees their tickets."""
    reader, found = run.consumer(Stream.PROMPTS), list[pb.Prompt]()
    async with asyncio.timeout(60):
        while len(found) < count:
            for entry in await reader.read(count - len(found)):
                found.append(pb.Prompt.FromString(entry.payload))
                await reader.end(entry, End.dropped("test"))
    return found
