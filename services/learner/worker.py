"""The loop of the learner: collect a batch, train, publish, make it durable, and only then acknowledge it.

A group's ticket returns when it has been trained on, so that generation goes on; its entry is settled when the
checkpoint that contains it is on disk. A crash in between redelivers it to the step before.
"""

import asyncio
import logging
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from services.learner import checkpoint, metrics
from services.learner.collapse import RewardWatch
from services.learner.messages import Scored, decode_group
from services.learner.settings import Settings
from services.learner.trainer import StepReport, Trainer
from shared import records, weights
from shared.errors import CorruptDataError, InvalidInputError, PreconditionError
from shared.streams.consumer import Consumer, End, Entry
from shared.streams.run import FINISHED, PAUSED, TRAINING, Run

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Status:
    run_id: str
    algorithm: str
    phase: str
    step: int
    total_steps: int
    diagnostics: Mapping[str, float]


@dataclass(slots=True)
class _Clock:
    """Where the time of a step goes, in seconds by phase."""

    began: float = field(default_factory=time.perf_counter)
    phases: dict[str, float] = field(default_factory=dict)

    def lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.phases[phase] = self.phases.get(phase, 0.0) + now - self.began
        metrics.PHASE_SECONDS.labels(phase).inc(now - self.began)
        self.began = now


class LearnerWorker:
    def __init__(
        self, settings: Settings, trainer: Trainer, run: Run, consumer: Consumer, contained: Sequence[str]
    ) -> None:
        """Args: contained: groups of the checkpoint that the trainer was resumed from."""
        self._settings = settings
        self._trainer = trainer
        self._run = run
        self._consumer = consumer
        self._contained = frozenset(contained)
        self._batch: list[Scored] = []
        self._unsettled: list[Entry] = []  # trained on, not yet in a durable checkpoint
        self._paused = False
        self._skipped = 0  # batches in a row
        self._watch = _watch_of(settings)
        self._checkpoint_wanted: list[asyncio.Future[Path]] = []
        self._diagnostics: Mapping[str, float] = {}
        self._clock = _Clock()

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
        """No step begins after this; gives the steps done."""
        self._paused = True
        await self._report_progress()
        return self._trainer.step

    async def resume(self) -> int:
        """A reward that had collapsed is measured anew."""
        self._paused = False
        if self._watch:
            self._watch.restart()
        await self._report_progress()
        return self._trainer.step

    async def checkpoint_now(self) -> Path:
        """Asks for a checkpoint after the step in progress; returns its folder when it is durable."""
        wanted: asyncio.Future[Path] = asyncio.get_running_loop().create_future()
        self._checkpoint_wanted.append(wanted)
        return await wanted

    async def announce_start(self) -> None:
        """Publishes a resumed run's weights, so that generation serves at least what the learner has."""
        newest = await self._run.newest_weights()
        if self._trainer.step > (newest.version if newest else 0):
            await self._publish()
        await self._report_progress()

    async def run(self, stop: asyncio.Event) -> None:
        """Trains until `run.steps`, then drops what still comes; returns when told to stop."""
        while not stop.is_set():
            if self._checkpoint_wanted:
                await self._checkpoint()
            if self._phase == PAUSED:
                await asyncio.sleep(self._settings.streams.block_seconds)
                continue
            missing = self._settings.run.groups_per_step - len(self._batch)
            for entry in await self._consumer.read(missing):
                await self._accept(entry)
            if len(self._batch) >= self._settings.run.groups_per_step:
                await self._step()
        if self._unsettled:
            await self._checkpoint()

    @property
    def _phase(self) -> str:
        if self._trainer.step >= self._settings.run.steps:
            return FINISHED
        return PAUSED if self._paused else TRAINING

    async def _accept(self, entry: Entry) -> None:
        """Into the batch, or out of the stream with a reason."""
        if entry.group in self._contained:  # trained on, and durable, before a crash kept it from being settled
            await self._consumer.end(entry, End.trained())
            return
        try:
            scored = decode_group(entry)
            self._trainer.check(scored.group)
        except (CorruptDataError, InvalidInputError) as error:
            metrics.DROPPED.labels("dead").inc(entry.trajectories)
            await self._consumer.bury(entry, "bad_trajectory", str(error))
            return
        if self._phase == FINISHED:
            await self._drop(entry, "run_finished")
            return
        await self._watch_reward(scored)
        if reason := self._trainer.drop_reason(scored.group):
            await self._drop(entry, reason)
        elif self._staleness(scored) > self._settings.run.max_staleness:
            await self._drop(entry, "stale")
        else:
            self._batch.append(scored)

    async def _drop(self, entry: Entry, reason: str) -> None:
        if await self._consumer.end(entry, End.dropped(reason)):
            metrics.DROPPED.labels(reason).inc(entry.trajectories)

    async def _step(self) -> None:
        self._clock.lap("wait")
        batch, self._batch = self._batch, []
        staleness = [self._staleness(scored) for scored in batch]
        report = await asyncio.to_thread(self._trainer.train_step, [scored.group for scored in batch])
        self._clock.lap("train")
        if report.skipped:
            await self._skip(batch, report.skipped)
            return
        self._skipped = 0
        await self._publish()
        self._clock.lap("publish")
        await self._run.return_tickets([scored.entry.group for scored in batch])
        self._unsettled.extend(scored.entry for scored in batch)
        if self._phase == FINISHED or self._is_kept(self._trainer.step):
            await self._checkpoint()
        self._clock.lap("checkpoint")
        await self._record(batch, staleness, report)
        if self._phase == FINISHED:
            log.info("finished after %d steps", self._trainer.step)
        await self._report_progress()

    async def _skip(self, batch: Sequence[Scored], reason: str) -> None:
        """Keeps the batch for a person to look at, and gives up after too many in a row.

        Raises:
            PreconditionError: `max_skipped` batches in a row.
        """
        self._skipped += 1
        metrics.SKIPPED.labels(reason).inc()
        folder = self._settings.run.path / "skipped" / f"step-{self._trainer.step + 1:08d}-{self._skipped}"
        await asyncio.to_thread(_keep_batch, folder, batch, self._settings.learner.max_skipped)
        log.error("step %d skipped: %s; its batch is in %s", self._trainer.step + 1, reason, folder)
        for scored in batch:
            await self._drop(scored.entry, reason)
        if self._skipped >= self._settings.learner.max_skipped:
            raise PreconditionError(
                f"{self._skipped} batches in a row were skipped ({reason}); they are in {folder.parent}. "
                "Resume with a lower learner.learning_rate or learner.max_grad_norm"
            )

    async def _watch_reward(self, scored: Scored) -> None:
        if self._watch is None:
            return
        collapsed = self._watch.add(float(np.mean(scored.rewards)))
        metrics.RUNNING_REWARD.set(self._watch.mean)
        metrics.COLLAPSED.set(collapsed)
        if collapsed and self._settings.learner.pause_on_collapse and self._phase != PAUSED:
            log.error("reward collapsed to a running mean of %.3f; paused until resumed", self._watch.mean)
            await self.pause()

    def _is_kept(self, step: int) -> bool:
        """Whether this step gets a checkpoint: every so many, and those that may turn out to be the best."""
        evaluate_every = self._settings.run.evaluate_every
        return step % self._settings.learner.checkpoint_every == 0 or (
            evaluate_every > 0 and step % evaluate_every == 0
        )

    async def _protected(self) -> set[int]:
        """Versions whose weights and checkpoints stay whatever their age."""
        return weights.protected_versions(
            await self._run.progress(), self._trainer.step, self._settings.run.evaluate_every
        )

    async def _publish(self) -> None:
        manifest = await asyncio.to_thread(
            weights.publish,
            self._settings.run.weights_root,
            self._trainer.step,
            self._trainer.export_weights,
            self._settings.learner.weights_kept,
            await self._protected(),
        )
        await self._run.announce(manifest)
        metrics.VERSION.set(manifest.version)

    async def _checkpoint(self) -> None:
        """Makes the state durable, then settles everything it contains."""
        path = await asyncio.to_thread(
            checkpoint.save,
            self._settings.run.path / "checkpoints",
            self._trainer,
            [entry.group for entry in self._unsettled],
            self._settings.learner.checkpoints_kept,
            await self._protected(),
        )
        for entry in self._unsettled:
            await self._consumer.end(entry, End.trained())
        self._unsettled.clear()
        wanted, self._checkpoint_wanted = self._checkpoint_wanted, []
        for future in wanted:
            if not future.done():
                future.set_result(path)

    async def _report_progress(self) -> None:
        await self._run.report_progress(
            step=self._trainer.step, version=self._trainer.step, total_steps=self._settings.run.steps, phase=self._phase
        )

    async def _record(self, batch: Sequence[Scored], staleness: Sequence[int], report: StepReport) -> None:
        rewards = [reward for scored in batch for reward in scored.rewards]
        reward, accuracy = float(np.mean(rewards)), float(np.mean([scored.correct for scored in batch]))
        now = datetime.now(UTC)
        ages = [(now - scored.generated_at).total_seconds() for scored in batch]
        self._diagnostics = report.diagnostics
        metrics.STEP.set(self._trainer.step)
        metrics.TRAJECTORIES.inc(len(rewards))
        metrics.TOKENS.inc(sum(s.completion.token_ids.size for scored in batch for s in scored.group.samples))
        metrics.REWARD.set(reward)
        metrics.TRAIN_ACCURACY.set(accuracy)
        for versions, seconds in zip(staleness, ages, strict=True):
            metrics.STALENESS.observe(versions)
            metrics.AGE.observe(seconds)
        for name, gauge in metrics.DIAGNOSTIC.items():
            if name in report.diagnostics:
                gauge.set(report.diagnostics[name])
        backlog = await self._run.backlog()
        record = {
            "step": self._trainer.step,
            "trajectories": len(rewards),
            "reward_mean": reward,
            "train_accuracy": accuracy,
            "staleness_mean": float(np.mean(staleness)),
            "staleness_max": max(staleness),
            "age_seconds_mean": float(np.mean(ages)),
            "queue": {stream: held.entries for stream, held in backlog.items()},
            "seconds": self._clock.phases,
            **report.diagnostics,
        }
        records.append(self._settings.run.path / records.LEARNER, record)
        self._clock = _Clock()
        log.info(
            "step %d/%d: reward %.3f, staleness %d, gamma %.4f",
            self._trainer.step, self._settings.run.steps, reward, max(staleness),
            report.diagnostics.get("gamma_mean", 1.0),
        )  # fmt: skip

    def _staleness(self, scored: Scored) -> int:
        return self._trainer.step - scored.oldest_version


def _watch_of(settings: Settings) -> RewardWatch | None:
    learner = settings.learner
    if not learner.collapse_window:
        return None
    return RewardWatch(learner.collapse_window * settings.run.groups_per_step, learner.collapse_fraction)


def _keep_batch(folder: Path, batch: Sequence[Scored], kept: int) -> None:
    """Writes each group as the TrajectoryGroup message that came; the newest `kept` batches stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, scored in enumerate(batch):
        (folder / f"{i:04d}.binpb").write_bytes(scored.entry.payload)
    for old in sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime_ns)[:-kept]:
        shutil.rmtree(old)
