"""The loop of the learner: collect a batch, train, publish, make it durable, and only then acknowledge it.

A group's ticket returns when it has been trained on, so that generation goes on; its entry is settled when the
checkpoint that contains it is on disk. A crash in between redelivers it, in the same order, to the step before.

Long because a batch, every way out of it and the end of the run are one state machine.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.learner import metrics
from services.learner.checkpointing.durable import Durable
from services.learner.data.messages import Scored, decode_group
from services.learner.ending import Ending, Spent
from services.learner.monitoring.collapse import RewardWatch
from services.learner.monitoring.recorder import Recorder
from services.learner.monitoring.samples import SampleKeeper
from services.learner.monitoring.traced import record_batch, step_span
from services.learner.settings import Settings
from services.learner.trainer import Trainer
from shared.errors import CorruptDataError, InvalidInputError, PreconditionError
from shared.streams.consumer import Consumer, End, Entry, EntryRef
from shared.streams.keys import Stream
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
        self._batch: list[Scored] = []
        self._doubles: list[EntryRef] = []  # other entries of groups in the batch
        self._paused = False
        self._between_steps = asyncio.Event()
        self._between_steps.set()
        self._activity = "waiting"  # or "training", from the start of a step to its end
        self._skipped = 0  # batches in a row
        self._watch = RewardWatch.of(settings)
        self._diagnostics: Mapping[str, float] = {}
        self._recorder = Recorder(settings, run)
        self._samples = SampleKeeper(settings)
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
        if self._watch:
            self._watch.restart()
        await self._report_progress()
        return self._trainer.step

    async def checkpoint_now(self) -> Path:
        """Returns the folder of a checkpoint after the step in progress when it is durable; see Durable for errors."""
        return await self._durable.checkpoint_now()

    async def start(self) -> None:
        """Brings what the run knows up to what the learner has. A run that a person paused stays paused."""
        await self._durable.start()
        metrics.STEP.set(self._trainer.step)
        metrics.VERSION.set(self._trainer.step)
        if (await self._run.progress()).phase == PAUSED:
            self._paused = True
            log.warning("still paused, as before the restart")
        await self._check_end()
        await self._report_progress()

    async def close(self) -> None:
        """Gives trackers and the writer of samples the time for what they hold."""
        await asyncio.to_thread(self._recorder.close)
        await asyncio.to_thread(self._samples.close)

    async def run(self, stop: asyncio.Event) -> None:
        """Trains until the run ends, then drops what still comes; returns when told to stop.

        Raises:
            UnavailableError: the disk took no writes for `disk_seconds`; what is not in a checkpoint is redelivered.
        """
        while not stop.is_set():
            if self._durable.is_wanted:
                await self._durable.checkpoint(stop)
            await self._end_between_steps(stop)
            # Nothing is awaited from here to the start of a step, so that no pause falls between the two. A batch that
            # has become full is therefore trained on in the next round, after a look at all that came meanwhile.
            if self._phase == PAUSED:
                await asyncio.sleep(self._settings.streams.block_seconds)
                await self._remind()
            elif len(self._batch) >= self._settings.run.groups_per_step:
                await self._step(stop)
            elif not await self._collect() and not await self._durable.make_room(stop):
                await self._remind()
                await self._check_stuck()
        if self._durable.is_behind:
            await self._durable.checkpoint(stop)

    async def _collect(self) -> int:
        """Reads what a batch still lacks; gives the number of entries. They are let go on return, but for the batch."""
        missing = self._settings.run.groups_per_step - len(self._batch)
        # What was trained on only waits to be settled, however often a learner was killed since.
        entries = await self._consumer.read(missing, spared=self._durable.contains)
        for entry in entries:
            await self._accept(entry)
        return len(entries)

    async def _remind(self) -> None:
        """Says again what a Redis that came back from a crash may have forgotten."""
        if time.monotonic() >= self._next_reminder:
            self._next_reminder = time.monotonic() + _REMIND_SECONDS
            await self._durable.remind()
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
        return self._end is not None

    async def _end_between_steps(self, stop: asyncio.Event) -> None:
        """Ends the run in order where a criterion is met while groups are waited for: an accuracy, or a time."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + _LOOK_SECONDS
        if not await self._check_end():
            return
        if self._durable.is_behind:
            await self._durable.checkpoint(stop)
        batch, self._batch = self._batch, []
        doubles, self._doubles = self._doubles, []
        for entry in (*(scored.entry.ref for scored in batch), *doubles):
            await self._drop(entry, "run_finished")
        await self._report_progress()

    async def _accept(self, entry: Entry) -> None:
        """Into the batch, or out of the stream with a reason."""
        if await self._durable.knows(entry):
            return
        if any(scored.entry.group == entry.group for scored in self._batch):
            if entry.id not in {held.id for held in (*(scored.entry.ref for scored in self._batch), *self._doubles)}:
                self._doubles.append(entry.ref)
            return
        try:
            scored = await asyncio.to_thread(self._decode, entry)
        except (CorruptDataError, InvalidInputError) as error:
            metrics.DROPPED.labels("dead").inc(entry.trajectories)
            await self._consumer.bury(entry, "bad_trajectory", str(error))
            return
        await self._consumer.vouch(entry)
        if self._phase == FINISHED:
            await self._drop(entry, "run_finished")
            return
        await self._watch_reward(scored)
        reason = self._trainer.drop_reason(scored.group)
        if reason is None and self._staleness(scored) > self._settings.run.max_staleness:
            reason = "stale"
        if reason is None:
            self._batch.append(scored)
            return
        self._samples.drop(scored, reason, self._trainer.step + 1)
        await self._drop(entry, reason)

    def _decode(self, entry: Entry) -> Scored:
        """In a thread: the payloads of a batch may take seconds, and the event loop has heartbeats to send."""
        scored = decode_group(entry)
        self._trainer.check(scored.group)
        return scored

    async def _check_stuck(self) -> None:
        """Raises PreconditionError where the groups of a step do not fit into their stream, so that none would end."""
        if not self._batch or not await self._run.has_waiting_producer(Stream.SCORED):
            return
        held = (await self._run.backlog())[Stream.SCORED]
        if held.entries == len(self._batch) + len(self._doubles):
            raise PreconditionError(
                f"streams.max_bytes is {self._settings.streams.max_bytes}: stream scored is full with {held.entries} "
                f"groups of {held.bytes} bytes, and a step takes {self._settings.run.groups_per_step}; raise it, or "
                "lower run.groups_per_step, rollout.n or rollout.max_tokens"
            )

    async def _drop(self, entry: Entry | EntryRef, reason: str) -> None:
        if await self._consumer.end(entry, End.dropped(reason)):
            metrics.DROPPED.labels(reason).inc(entry.trajectories)

    async def _step(self, stop: asyncio.Event) -> None:
        self._between_steps.clear()
        try:
            await self._train(stop)
        finally:
            self._between_steps.set()

    async def _train(self, stop: asyncio.Event) -> None:
        self._recorder.lap("wait")
        self._activity = "training"
        await self._report_progress()
        # In the order of their prompts, not of their arrival: the same groups make the same step, bit for bit.
        batch, self._batch = sorted(self._batch, key=lambda scored: scored.entry.group), []
        doubles, self._doubles = self._doubles, []
        with step_span(batch, self._trainer.step + 1) as span:
            await self._take(batch, doubles, span, stop)
        self._activity = "waiting"
        await self._report_progress()

    async def _take(
        self, batch: Sequence[Scored], doubles: Sequence[EntryRef], span: Span[Step], stop: asyncio.Event
    ) -> None:
        """Takes a step, or skips it, and does what follows from that."""
        step, began = self._trainer.step + 1, time.time()
        staleness = [self._staleness(scored) for scored in batch]
        kept = self._samples.choose(step, len(batch))
        report = await asyncio.to_thread(self._trainer.train_step, [scored.group for scored in batch], kept)
        record_batch(batch, staleness, step, began, span.traceparent, report.skipped or "")
        self._samples.add(batch, report)
        self._recorder.lap("train")
        if report.skipped:
            span.set({"skipped": report.skipped})
            span.fail(report.skipped)
            await self._skip(batch, doubles, report.skipped)
            return
        self._skipped = 0
        await self._durable.publish(stop)
        self._recorder.lap("publish")
        self._durable.add([*(scored.entry.ref for scored in batch), *doubles])
        self._ending.spent.tokens += sum(s.completion.token_ids.size for g in batch for s in g.group.samples)
        await self._check_end()
        await self._run.return_tickets([scored.entry.group for scored in batch])
        if self._phase == FINISHED or self._is_kept(self._trainer.step):
            await self._durable.checkpoint(stop)
        else:
            await self._durable.make_room(stop)
        self._recorder.lap("checkpoint")
        self._diagnostics = report.diagnostics
        await self._recorder.step(batch, staleness, report)

    async def _skip(self, batch: Sequence[Scored], doubles: Sequence[EntryRef], reason: str) -> None:
        """Keeps the batch for a person to look at, and gives up after too many in a row.

        Raises:
            PreconditionError: `max_skipped` batches in a row.
        """
        self._skipped += 1
        metrics.SKIPPED.labels(reason).inc()
        folder = self._settings.run.path / "skipped" / f"step-{self._trainer.step + 1:08d}-{self._skipped}"
        log.error("step %d skipped: %s; its batch is in %s", self._trainer.step + 1, reason, folder)
        await asyncio.to_thread(self._recorder.keep_skipped, folder, batch)
        for entry in (*(scored.entry.ref for scored in batch), *doubles):
            await self._drop(entry, reason)
        if self._skipped >= self._settings.learner.optimizer.max_skipped:
            raise PreconditionError(
                f"{self._skipped} batches in a row were skipped ({reason}); they are in {folder.parent}. "
                "Resume with a lower learner.optimizer.learning_rate or learner.optimizer.max_grad_norm"
            )

    async def _watch_reward(self, scored: Scored) -> None:
        if self._watch is None:
            return
        collapsed = self._watch.add(float(np.mean(scored.rewards)))
        metrics.RUNNING_REWARD.set(self._watch.mean)
        metrics.COLLAPSED.set(collapsed)
        if collapsed and self._settings.learner.collapse.pause and self._phase != PAUSED:
            log.error("reward collapsed to a running mean of %.3f; paused until resumed", self._watch.mean)
            await self.pause()

    def _is_kept(self, step: int) -> bool:
        """Whether this step gets a checkpoint: every so many, and those that may turn out to be the best."""
        evaluate_every = self._settings.run.evaluate_every
        return step % self._settings.learner.checkpoints.every == 0 or (
            evaluate_every > 0 and step % evaluate_every == 0
        )

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
                    collected=len(self._batch),
                )
            )

    def _staleness(self, scored: Scored) -> int:
        return self._trainer.step - scored.oldest_version
