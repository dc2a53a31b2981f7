"""A learner that ends before its steps are done, on a real Redis."""

from pathlib import Path

from services.learner.data.batch import Group
from services.learner.settings import Settings
from shared.settings import StopSettings
from shared.streams.keys import Stream
from shared.streams.progress import Progress
from shared.streams.run import FINISHED, TRAINING, Run
from tests.support.entries import SAMPLES, message, put, until
from tests.support.learning import GROUPS, Learning, nothing_in_flight, tables


def limited(settings: Settings, **stop: float) -> Settings:
    return settings.model_copy(update={"run": settings.run.model_copy(update={"stop": StopSettings(**stop)})})


async def test_tokens_end_a_run_in_order_and_are_counted_over_starts(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    sizes = [sum(sample.completion.token_ids.size for sample in group.samples) for group in groups]
    both = sum(sizes[: 2 * GROUPS])
    settings = limited(tables(tmp_path, model, steps=5, checkpoints__every=100), tokens=both)
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[:GROUPS])))
    async with Learning(settings, run) as learning:
        await until(lambda: _has_step(run, 1))
        assert (await run.progress()).phase == TRAINING
        assert (await run.progress()).end == ""
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[GROUPS : 3 * GROUPS], GROUPS)))
    async with Learning(settings, run) as learning:
        await until(lambda: nothing_in_flight(run))  # the end made a checkpoint and dropped the rest
        assert learning.trainer.step == 2
    progress = await run.progress()
    assert progress.phase == FINISHED
    assert progress.end == f"{both} tokens trained on have reached run.stop.tokens = {both}"
    assert (await run.ledger()).dropped == {"run_finished": GROUPS * SAMPLES}

    async with Learning(settings, run):
        assert (await run.progress()).end == progress.end
    async with Learning(limited(settings), run):
        assert (await run.progress()).phase == TRAINING
        assert (await run.progress()).end == ""


async def test_an_accuracy_ends_a_run_that_waits_for_groups(
    run: Run, tmp_path: Path, model: Path, groups: list[Group]
) -> None:
    settings = limited(tables(tmp_path, model, steps=5, checkpoints__every=100), accuracy=0.5)
    await put(run, Stream.SCORED, *(message(g, i) for i, g in enumerate(groups[: GROUPS + 1])))
    async with Learning(settings, run):
        await until(lambda: _has_step(run, 1))
        assert (await run.ledger()).trained == 0
        await run.report_progress(Progress(best_version=1, best_accuracy=0.6))
        await until(lambda: nothing_in_flight(run))
    ledger = await run.ledger()
    assert (ledger.trained, ledger.dropped) == (GROUPS * SAMPLES, {"run_finished": SAMPLES})
    assert (await run.progress()).end == "held-out accuracy 0.6 of version 1 has reached run.stop.accuracy = 0.5"


async def _has_step(run: Run, step: int) -> bool:
    return (await run.progress()).step == step
