"""What the learner must not lose: published versions, checkpoints, and the entries that wait for a checkpoint.

An entry is acknowledged only when the checkpoint that contains its group is on disk. A disk that takes no writes is
waited for, and nothing is trained meanwhile.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from routershift.v1 import trajectory_pb2 as pb
from services.learner import metrics
from services.learner.checkpointing import checkpoint
from services.learner.checkpointing.announcer import Announcer
from services.learner.ending import Spent
from services.learner.settings import Settings
from shared.errors import CorruptDataError, DeadlineError, NotFoundError, PreconditionError, UnavailableError
from shared.files import refusal
from shared.models.folder import copy_descriptions
from shared.streams import saved
from shared.streams.consumer import Consumer, End, Entry, EntryRef
from shared.streams.keys import Stream
from shared.streams.run import Run
from shared.tracing import spans
from shared.tracing.kinds import CHECKPOINT, PUBLISH
from shared.weights import published

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 15.0


class Publishable(checkpoint.Checkpointable, Protocol):
    """What is published as well: a trainer, as far as its durability goes."""

    def export_weights(self, folder: Path) -> None:
        """Writes safetensors with the tensor names and the dtype of the model folder."""
        ...


class Durable:
    """Publishes and checkpoints what a trainer has learnt, and settles the entries that it learnt from."""

    def __init__(
        self,
        settings: Settings,
        trainer: Publishable,
        run: Run,
        consumer: Consumer,
        trained: Mapping[str, int],
        spent: Spent,
    ) -> None:
        """
        Args:
            trained: the groups that the state of the trainer contains, each with its step.
            spent: what training has taken, which the caller counts on and a checkpoint carries.
        """
        self._spent = spent
        self._settings = settings
        self._trainer = trainer
        self._run = run
        self._consumer = consumer
        self._trained = dict(trained)
        self._waiting: dict[str, tuple[EntryRef, int]] = {}  # by id: trained on in this step, not yet in a checkpoint
        self._wanted: list[asyncio.Future[Path]] = []
        self._announcer = Announcer(settings, run)
        self._published = 0

    @property
    def published(self) -> int:
        """The highest version that was ever published in this run.

        It is above the trainer's step while steps after the checkpoint of a restart are taken again.
        """
        return max(self._published, self._trainer.step)

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for a checkpoint."""
        return bool(self._wanted)

    @property
    def is_behind(self) -> bool:
        """Whether something was trained on that no checkpoint contains."""
        return bool(self._waiting)

    def contains(self, group: str) -> bool:
        """Whether this group was trained on, durable or not yet."""
        return self._step_of(group) is not None

    def add(self, entries: Iterable[EntryRef]) -> None:
        """Entries that the last step trained on. Their payloads are not kept: only a crash would need them again."""
        self._waiting |= {entry.id: (entry, self._trainer.step) for entry in entries}

    async def knows(self, entry: Entry) -> bool:
        """Whether its group was trained on. Such an entry is settled: now, or with the next checkpoint."""
        step = self._step_of(entry.group)
        if step is None:
            return False
        metrics.REPEATED.inc(entry.trajectories)
        if entry.group in self._trained:
            await self._consumer.end(entry, End.trained(step))
        else:
            self._waiting.setdefault(entry.id, (entry.ref, step))
        return True

    async def start(self) -> None:
        """Publishes a resumed run's weights, so that generation serves at least what the learner has.

        Raises:
            PreconditionError: Redis knows of training that no checkpoint contains, as when a volume is missing.
            UnavailableError: the disk takes no writes.
        """
        if not self._trained and (lost := (await self._run.ledger()).trained):
            raise PreconditionError(
                f"{lost} trajectories of run {self._settings.run.id} were trained on, but {self._checkpoints} has no "
                "checkpoint; bring it back, or begin again with another run.id"
            )
        # Redis is not asked: what is announced there may be another's word.
        self._published = max(await asyncio.to_thread(published.versions, self._settings.run.weights_root), default=0)
        last = max(self._checkpoints.glob("step-*"), default=None)
        metrics.CHECKPOINTED.set(last.stat().st_mtime if last else time.time())
        newest = await self._run.newest_weights()
        if self._trainer.step > 0 and not await asyncio.to_thread(self._is_served, newest):
            await self.publish(asyncio.Event())
        elif newest is not None:
            self._announcer.adopt(newest)

    async def remind(self) -> None:
        """Announces the newest version again where it is not known; see Announcer."""
        await self._announcer.remind()

    async def publish(self, stop: asyncio.Event) -> None:
        """Writes the weights of this step and announces them."""
        root, keep, protected = (
            self._settings.run.weights_root,
            self._settings.learner.checkpoints.keep_weights,
            await self._protected(),
        )

        def write() -> pb.WeightsManifest:
            return published.publish(root, self._trainer.step, self._export, keep, protected)

        with spans.span(PUBLISH):
            manifest = await self._written("weights", root, write, stop)
            await self._announcer.announce(manifest)
        metrics.VERSION.set(manifest.version)

    def _export(self, folder: Path) -> None:
        """Fills a folder that transformers and vLLM load as they load the model that the run began with."""
        self._trainer.export_weights(folder)
        copy_descriptions(self._settings.run.model_folder(), folder)

    async def make_room(self, stop: asyncio.Event) -> bool:
        """Writes a checkpoint ahead of time where a producer waits for room that trained groups take; tells whether.

        What was trained on stays in its stream until a checkpoint contains it, so that a stream which is smaller than
        the steps between two checkpoints would stop the run for ever.
        """
        if not self.is_behind:
            return False
        if await self._run.has_waiting_producer(Stream.SCORED):
            full, remedy = "stream scored", "raise streams.max_bytes"
        elif await self._run.has_waiting_producer("payloads"):
            full, remedy = "the payload store", "give it more room"
        else:
            return False
        metrics.EARLY_CHECKPOINTS.inc()
        log.warning(
            "step %d gets a checkpoint ahead of time: %s is full of groups that were trained on; %s, or lower "
            "learner.checkpoints.every",
            self._trainer.step, full, remedy,
        )  # fmt: skip
        await self.checkpoint(stop)
        return True

    async def checkpoint(self, stop: asyncio.Event) -> None:
        """Makes the state durable, then settles everything it contains."""
        contained = dict(self._waiting)  # other entries of these groups may come meanwhile
        groups = {entry.group: step for entry, step in contained.values()}
        kept, protected = self._settings.learner.checkpoints, await self._protected()
        meta = self._spent.as_meta()
        carried = await saved.Saved.collect(self._run, self._trainer.step)

        def save() -> Path:
            texts = {saved.FILE: carried.encode()}
            return checkpoint.save(
                self._checkpoints, self._trainer, groups, kept.keep, protected, kept.keep_seconds, meta, texts
            )

        with spans.span(CHECKPOINT):
            path = await self._written("checkpoint", self._checkpoints, save, stop)
        metrics.CHECKPOINTED.set_to_current_time()
        await self._written("trained_list", path, lambda: checkpoint.list_trained(path, groups), stop)
        self._trained |= groups
        for entry, step in contained.values():
            await self._consumer.end(entry, End.trained(step))
        for name in contained:
            del self._waiting[name]
        wanted, self._wanted = self._wanted, []
        for future in wanted:
            if not future.done():
                future.set_result(path)

    async def checkpoint_now(self) -> Path:
        """Asks for a checkpoint after the step in progress; returns its folder when it is durable.

        Raises:
            DeadlineError: the step does not end, or the disk takes no writes.
        """
        wanted: asyncio.Future[Path] = asyncio.get_running_loop().create_future()
        self._wanted.append(wanted)
        checkpoints = self._settings.learner.checkpoints
        seconds = checkpoints.step_seconds + checkpoints.disk_seconds
        try:
            async with asyncio.timeout(seconds):
                return await wanted
        except TimeoutError:
            raise DeadlineError(
                f"no checkpoint within {seconds:g} s; see the learner's log, or raise "
                f"learner.checkpoints.step_seconds, {checkpoints.step_seconds:g}, where steps take that long"
            ) from None

    def _step_of(self, group: str) -> int | None:
        """The step that trained on a group, durable or not yet."""
        if (step := self._trained.get(group)) is not None:
            return step
        return next((step for entry, step in self._waiting.values() if entry.group == group), None)

    @property
    def _checkpoints(self) -> Path:
        return self._settings.run.checkpoints_root

    def _is_served(self, newest: pb.WeightsManifest | None) -> bool:
        """Whether the version of this step can be loaded, or a later one was announced before a crash."""
        if newest is None or newest.version != self._trainer.step:
            return newest is not None and newest.version > self._trainer.step
        try:
            published.verify(self._settings.run.weights_root, newest)
        except (NotFoundError, CorruptDataError) as error:
            log.warning("version %d is published again: %s", newest.version, error)
            return False
        return True

    async def _protected(self) -> set[int]:
        """Versions whose weights and checkpoints stay whatever their age."""
        return published.protected_versions(
            await self._run.progress(),
            self._trainer.step,
            self._settings.run.evaluate_every,
            self._settings.learner.checkpoints.keep_best,
        )

    async def _written(self, name: str, place: Path, write: Callable[[], T], stop: asyncio.Event) -> T:
        """Its result, when the disk has taken it; the last attempt is the first one after `stop`.

        Raises:
            PreconditionError: another process has become the learner of this run.
            UnavailableError: not within `disk_seconds`. What was durable before still is.
        """
        deadline = time.monotonic() + self._settings.learner.checkpoints.disk_seconds
        pause, attempts = _FIRST_PAUSE_SECONDS, 1
        while True:
            # No script can fence a file: a process that was replaced while it stood still must learn of it before.
            await self._run.lease.confirm()
            try:
                result = await asyncio.to_thread(write)
            except Exception as error:
                refused = refusal(error)
                if refused is None:
                    raise
                metrics.REFUSED_WRITES.labels(name).inc()
                reason = (
                    f"{name.replace('_', ' ')} of step {self._trainer.step} not written to "
                    f"{refused.filename or place}: {refused.strerror or refused} (errno {refused.errno}); "
                    "free space there, or point run.folder at a disk that takes writes"
                )
                if stop.is_set() or time.monotonic() + pause > deadline:
                    raise UnavailableError(reason) from error
                log.error("attempt %d, the next one in %g s: %s", attempts, pause, reason)
            else:
                if attempts > 1:
                    log.warning("%s of step %d written by attempt %d", name, self._trainer.step, attempts)
                return result
            try:
                await asyncio.wait_for(stop.wait(), pause)
            except TimeoutError:
                pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            attempts += 1
