"""The loop of the learner: collect a batch, train, publish, make it durable, and only then acknowledge it.

A group's ticket returns when it has been trained on, so that generation goes on; its entry is settled when the
checkpoint that contains it is on disk, which is written while later steps train. A crash in between redelivers it, in
the same order, to the step before.
"""

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from services.learner import metrics
from services.learner.checkpointing.durable import Durable
from services.learner.checkpointing.publisher import Publisher
from services.learner.collector import Collected, Collector
from services.learner.ending import Ending, Spent
from services.learner.monitoring.recorder import Recorder
from services.learner.monitoring.samples import SampleKeeper
from services.learner.monitoring.traced import record_batch, step_span
from services.learner.settings import Settings
from services.learner.trainer import Trainer
from shared.errors import PreconditionError
from shared.process.own_thread import OwnThread
from shared.streams.consumer import Consumer
from shared.streams.progress import Progress
from shared.streams.run import FINISHED, PAUSED, TRAINING, Run
from shared.tracing.kinds import Step
from shared.tracing.spans import Span

log = logging.getLogger(__name__)

_REMIND_SECONDS = 5.0
_LOOK_SECONDS = 1.0  # between looks at the criteria that end a run, while groups are waited for


@dataclass(frozen=True, slots=True)
class Status:
    run_id: str
    algorithm: str
    phase: str
    step: int
    total_steps: int
    diagnostics: Mapping[str, float]


class LearnerWorker:
    def __init__(
        self,
        settings: Settings,
        trainer: Trainer,
        run: Run,
        consumer: Consumer,
        trained: Mapping[str, int],
        spent: Spent,
    ) -> None:
        """
        Args:
            trained: the groups that the state of the trainer contains, each with its step.
            spent: what training has taken up to that state; it is counted on.
        """
        self._ending = Ending(settings.run, spent)
        self._end: str | None = None  # why the run has ended
        self._next_look = 0.0
        self._settings = settings
        self._trainer = trainer
        self._run = run
        self._consumer = consumer
        self._durable = Durable(settings, trainer, run, consumer, trained, self._ending.spent)
        self._publisher = Publisher(settings, trainer, run)
        self._paused = False
        self._between_steps = asyncio.Event()
        self._between_steps.set()
        self._activity = "waiting"  # or "training", from the start of a step to its end
        self._skipped = 0  # batches in a row
        self._diagnostics: Mapping[str, float] = {}
        self._training = OwnThread("training")
        self._recorder = Recorder(settings, run)
        self._samples = SampleKeeper(settings, run.bulk)
        self._collector = Collector(settings, trainer, run, consumer, self._durable, self._publisher, self._samples)
        self._next_reminder = 0.0
        self._reporting = asyncio.Lock()

    def status(self) -> Status:
        run = self._settings.run
        return Status(
            run_id=run.id,
            algorithm=self._settings.learner.algorithm,
            phase=self._phase,
            step=self._trainer.step,
            total_steps=run.steps,
            diagnostics=self._diagnostics,
        )

    async def pause(self) -> int:
        """No step begins after this; returns the steps done once the step in progress has ended."""
        self._tick()
        self._paused = True
        await self._report_progress()
        await self._between_steps.wait()
        return self._trainer.step

    async def resume(self) -> int:
        """A reward that had collapsed is measured anew."""
        self._tick()
        self._paused = False
        self._collector.watch_anew()
        await self._report_progress()
        return self._trainer.step

    async def checkpoint_now(self) -> Path:
        """Returns the folder of a checkpoint after the step in progress when it is durable; see Durable for errors."""
        return await self._durable.checkpoint_now()

    async def start(self) -> None:
        """Brings what the run knows up to what the learner has. A run that a person paused stays paused."""
        await self._durable.start()
        await self._publisher.start()
        metrics.STEP.set(self._trainer.step)
        metrics.VERSION.set(self._trainer.step)
        if (await self._run.progress()).phase == PAUSED:
            self._paused = True
            log.warning("still paused, as before the restart")
        await self._check_end()
        await self._report_progress()

    async def close(self) -> None:
        """Gives trackers and the writer of samples the time for what they hold."""
        self._training.close()
        await asyncio.to_thread(self._recorder.close)
        await asyncio.to_thread(self._samples.close)

    async def run(self, stop: asyncio.Event) -> None:
        """Trains until the run ends, then drops what still comes; returns when told to stop.

        Raises:
            UnavailableError: the disk took no writes for `disk_seconds`; what is not in a checkpoint is redelivered.
        """
        try:
            await self._rounds(stop)
            await self._durable.drain(stop)
        finally:
            await self._durable.close()

    async def _rounds(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            await self._durable.attend()
            if self._durable.is_wanted:
                await self._durable.checkpoint(stop)
            await self._end_between_steps(stop)
            # Nothing is awaited from here to the start of a step, so that no pause falls between the two. A batch that
            # has become full is therefore trained on in the next round, after a look at all that came meanwhile.
            if self._phase == PAUSED:
                await asyncio.sleep(self._settings.streams.block_seconds)
                await self._remind()
            elif self._collector.is_full:
                await self._step(stop)
            elif await self._collector.read(drops=self._phase == FINISHED):
                await self._pause_on_collapse()
            elif not await self._durable.make_room(stop):
                await self._remind()
                await self._collector.check_stuck()

    async def _remind(self) -> None:
        """Says again what a Redis that came back from a crash may have forgotten."""
        if time.monotonic() >= self._next_reminder:
            self._next_reminder = time.monotonic() + _REMIND_SECONDS
            await self._publisher.remind()
            await self._report_progress()

    @property
    def _phase(self) -> str:
        if self._end:
            return FINISHED
        return PAUSED if self._paused else TRAINING

    def _tick(self) -> None:
        """Counts the time since it was last called. A step that a pause waits for counts to its end."""
        self._ending.tick(counts=self._phase == TRAINING or not self._between_steps.is_set())

    async def _check_end(self) -> bool:
        """Looks whether a criterion is met; tells whether it is one more than before."""
        self._tick()
        if self._end:
            return False
        self._end = self._ending.reason(self._trainer.step, await self._run.progress())
        if self._end:
            log.info("finished after step %d: %s", self._trainer.step, self._end)
            await self._publisher.keep(asyncio.Event())
        return self._end is not None

    async def _end_between_steps(self, stop: asyncio.Event) -> None:
        """Ends the run in order where a criterion is met while groups are waited for: an accuracy, or a time."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_SECONDS
        if not await self._check_end():
            return
        await self._durable.drain(stop)
        await self._collector.drop(self._collector.take(), "run_finished")
        await self._report_progress()

    async def _step(self, stop: asyncio.Event) -> None:
        self._between_steps.clear()
        try:
            await self._train(stop)
        finally:
            self._between_steps.set()
        await self._pause_on_collapse()  # of groups that were read ahead

    async def _train(self, stop: asyncio.Event) -> None:
        self._recorder.lap("wait")
        self._activity = "training"
        await self._report_progress()
        batch = self._collector.take()
        # In the order of their prompts, not of their arrival: the same groups make the same step, bit for bit.
        batch.groups.sort(key=lambda scored: scored.entry.group)
        with step_span(batch.groups, self._trainer.step + 1) as span:
            if self._trainer.step + 1 < self._settings.run.steps:
                async with self._collector.ahead(batch):
                    await self._take(batch, span, stop)
            else:
                await self._take(batch, span, stop)
        if self._phase == FINISHED:
            await self._collector.drop(self._collector.take(), "run_finished")
        self._activity = "waiting"
        await self._report_progress()

    async def _take(self, batch: Collected, span: Span[Step], stop: asyncio.Event) -> None:
        """Takes a step, or skips it, and does what follows from that."""
        step, began = self._trainer.step + 1, time.time()
        groups = batch.groups
        staleness = [self._trainer.step - scored.oldest_version for scored in groups]
        kept = self._samples.choose(step, len(groups))
        report = await self._training.run(self._trainer.train_step, [scored.group for scored in groups], kept)
        record_batch(groups, staleness, step, began, span.traceparent, report.skipped or "")
        await asyncio.to_thread(self._samples.add, groups, report)
        self._recorder.lap("train")
        if report.skipped:
            span.set({"skipped": report.skipped})
            span.fail(report.skipped)
            await self._skip(batch, report.skipped)
            return
        self._skipped = 0
        await self._publisher.publish(stop)
        self._recorder.lap("publish")
        self._durable.add(batch.refs)
        self._ending.spent.tokens += report.tokens
        await self._check_end()
        await self._run.return_tickets([scored.entry.group for scored in groups])
        await self._durable.end_step(stop, is_last=self._phase == FINISHED)
        self._recorder.lap("checkpoint")
        self._diagnostics = report.diagnostics
        await self._recorder.step(groups, staleness, report)

    async def _skip(self, batch: Collected, reason: str) -> None:
        """Keeps the batch for a person to look at, and gives up after too many in a row.

        Raises:
            PreconditionError: `max_skipped` batches in a row.
        """
        self._skipped += 1
        metrics.SKIPPED.labels(reason).inc()
        folder = self._settings.run.path / "skipped" / f"step-{self._trainer.step + 1:08d}-{self._skipped}"
        log.error("step %d skipped: %s; its batch is in %s", self._trainer.step + 1, reason, folder)
        await asyncio.to_thread(self._recorder.keep_skipped, folder, batch.groups)
        await self._collector.drop(batch, reason)
        if self._skipped >= self._settings.learner.optimizer.max_skipped:
            raise PreconditionError(
                f"{self._skipped} batches in a row were skipped ({reason}); they are in {folder.parent}. "
                "Resume with a lower learner.optimizer.learning_rate or learner.optimizer.max_grad_norm"
            )

    async def _pause_on_collapse(self) -> None:
        mean = self._collector.collapsed_to
        if mean is not None and self._settings.learner.collapse.pause and self._phase != PAUSED:
            log.error("reward collapsed to a running mean of %.3f; paused until resumed", mean)
            await self.pause()

    async def _report_progress(self) -> None:
        """Also what `routershift run` goes by: whether a step is being computed, and how full the next batch is.

        One at a time: of a pause and a resume, or a step, the later one is what the run knows in the end.
        """
        async with self._reporting:
            self._recorder.show(self._activity if self._phase == TRAINING else self._phase)
            step = self._trainer.step
            await self._run.report_progress(
                Progress(
                    step=step,
                    version=step,
                    total_steps=self._settings.run.steps,
                    phase=self._phase,
                    end=self._end or "",
                    activity=self._activity,
                    collected=len(self._collector),
                )
            )
