"""Rows on their way through a real Redis: with their ids, token ids and verifiers, none twice and none left out."""

import asyncio
from collections import Counter
from pathlib import Path

from routershift import wire
from routershift.v1 import trajectory_pb2 as pb
from services.curriculum.data.dataset import DataProblems
from services.curriculum.settings import Settings
from services.curriculum.worker import CurriculumWorker
from shared.models.tokenizer import load_tokenizer
from shared.streams.run import Run
from tests.support.data import save_chat_model, settings, source, sums, write_jsonl
from tests.support.feeding import end_prompts

ROWS = 40


async def feed(tables: Settings, run: Run, count: int) -> list[pb.Prompt]:
    """What a curriculum that is started now admits, until so many prompts are through; then it is ended."""
    worker = CurriculumWorker(tables, DataProblems(tables), run)
    task = asyncio.create_task(worker.feed())
    try:
        return await end_prompts(run, count)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_curriculum_that_is_started_again_reads_no_row_twice_and_skips_none(run: Run, tmp_path: Path) -> None:
    model = save_chat_model(tmp_path / "model")
    train = write_jsonl(tmp_path / "train.jsonl", sums(ROWS))
    held_out = source(write_jsonl(tmp_path / "test.jsonl", sums(4, 90)))
    table = source(train, system="Be brief.", verifier="exact")
    tables = settings(
        model, [table], [held_out], run={"id": run.keys.run, "folder": tmp_path, "groups_per_step": 3, "seed": 5}
    )
    prompts = [prompt for count in (7, 1, 25, 2 * ROWS - 33) for prompt in await feed(tables, run, count)]
    ids = [prompt.problem_id for prompt in prompts]
    assert Counter(ids[:ROWS]) == Counter(ids[ROWS:]) == Counter(f"train.jsonl:{i}" for i in range(1, ROWS + 1))
    assert [prompt.prompt_id for prompt in prompts] == [f"{i:08d}" for i in range(2 * ROWS)]
    tokenizer = load_tokenizer(model)
    for prompt in prompts[:5]:
        number = int(prompt.problem_id.rpartition(":")[2]) - 1
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": prompt.text}]
        expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
        assert list(prompt.token_ids) == expected
        assert (prompt.text, prompt.verifier) == (f"What is {number} + {number}?", "exact")
        assert wire.decode_struct(prompt.reference) == {"answer": str(2 * number)}
