"""What the learner must not lose: checkpoints, and the entries that wait for one.

A checkpoint is of the state at the end of a step, and is written while the next step trains. An entry is acknowledged
only when the checkpoint that contains its group is on disk. A disk that takes no writes is waited for, and no step
begins meanwhile.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from services.learner import metrics
from services.learner.checkpointing import checkpoint
from services.learner.checkpointing.checkpoint import Checkpointable, Snapshot
from services.learner.checkpointing.publisher import protected_versions
from services.learner.checkpointing.retries import Retries
from services.learner.ending import Spent
from services.learner.settings import Settings
from shared.errors import DeadlineError, PreconditionError
from shared.streams import saved
from shared.streams.consumer import Consumer, End, Entry, EntryRef
from shared.streams.keys import Stream
from shared.streams.run import Run
from shared.tracing import spans
from shared.tracing.kinds import CHECKPOINT

log = logging.getLogger(__name__)


class Durable:
    """Checkpoints what a trainer has learnt, and settles the entries that it learnt from."""

    def __init__(
        self,
        settings: Settings,
        trainer: Checkpointable,
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
        self._disk = Retries(settings, run)
        self._writing: asyncio.Task[None] | None = None  # the checkpoint on its way
        self._covered = -1  # the step of the last checkpoint, on disk or on its way
        self._has_made_room = False  # since somebody asked

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for a checkpoint."""
        return bool(self._wanted)

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
        """Raises PreconditionError where Redis knows of training that no checkpoint contains, as without a volume."""
        if not self._trained and (lost := (await self._run.ledger()).trained):
            raise PreconditionError(
                f"{lost} trajectories of run {self._settings.run.id} were trained on, but {self._checkpoints} has no "
                "checkpoint; bring it back, or begin again with another run.id"
            )
        last = max(self._checkpoints.glob("step-*"), default=None)
        metrics.CHECKPOINTED.set(last.stat().st_mtime if last else time.time())

    async def end_step(self, stop: asyncio.Event, is_last: bool) -> None:
        """Begins the checkpoint of a step, where it gets one; that of the last step is durable on return.

        A step gets one every so many, if it may turn out to be the best, and if room is needed.
        """
        step, evaluate_every = self._trainer.step, self._settings.run.evaluate_every
        is_evaluated = evaluate_every > 0 and step % evaluate_every == 0
        if is_last or is_evaluated or step % self._settings.learner.checkpoints.every == 0:
            await self.checkpoint(stop)
        else:
            await self.make_room(stop)
        if is_last:
            await self._settled()

    async def drain(self, stop: asyncio.Event) -> None:
        """All that was trained on is in a checkpoint, durable, and acknowledged."""
        if self._is_behind:
            await self.checkpoint(stop)
        await self._settled()

    async def make_room(self, stop: asyncio.Event) -> bool:
        """Writes a checkpoint ahead of time where a producer waits for room that trained groups take, and waits for it.

        Tells whether there is more room since it was last asked.

        What was trained on stays in its stream until a checkpoint contains it, so that a stream which is smaller than
        the steps between two checkpoints would stop the run for ever.
        """
        if self._has_made_room:  # a producer that still waits may not have seen it
            self._has_made_room = False
            return True
        if not self._waiting:
            return False
        if await self._run.has_waiting_producer(Stream.SCORED):
            full, remedy = "stream scored", "raise streams.max_bytes"
        elif await self._run.has_waiting_producer("payloads"):
            full, remedy = "the payload store", "give it more room"
        else:
            return False
        if self._is_behind:
            metrics.EARLY_CHECKPOINTS.inc()
            log.warning(
                "step %d gets a checkpoint ahead of time: %s is full of groups that were trained on; %s, or lower "
                "learner.checkpoints.every",
                self._trainer.step, full, remedy,
            )  # fmt: skip
            await self.checkpoint(stop)
        await self._settled()
        return True

    async def checkpoint(self, stop: asyncio.Event) -> None:
        """Takes the state as it is now, when the checkpoint before is durable, and begins to write it.

        What it contains is settled when it is durable: see `attend` and `drain`.

        Raises:
            UnavailableError: the disk takes no writes.
        """
        began = time.perf_counter()
        await self._settled()
        self._measured("wait", began)
        step, contained = self._trainer.step, dict(self._waiting)
        groups = {entry.group: of for entry, of in contained.values() if entry.group not in self._trained}
        carried = await saved.Saved.collect(self._run, step)
        wanted, self._wanted = self._wanted, []
        await self._disk.written(
            "checkpoint", step, self._checkpoints, lambda: checkpoint.begin(self._checkpoints, step), stop
        )
        began = time.perf_counter()
        meta = {**self._spent.as_meta(), "groups": groups}
        snapshot = await asyncio.to_thread(self._trainer.snapshot, meta)
        self._measured("copy", began)
        self._covered = step
        self._writing = asyncio.create_task(self._write(step, groups, snapshot, carried, wanted, stop))
        if not self._settings.learner.checkpoints.background:
            await self._settled()

    async def attend(self) -> None:
        """Waits while the disk refuses the checkpoint on its way.

        Raises:
            UnavailableError: the disk takes no writes.
        """
        if self._writing is not None and (self._writing.done() or self._disk.is_refused):
            await self._settled()

    async def close(self) -> None:
        """Acknowledges nothing more."""
        if self._writing is not None:
            self._writing.cancel()
            await asyncio.wait({self._writing})

    async def _settled(self) -> None:
        """The checkpoint on its way is durable, and what it contains is acknowledged.

        Raises:
            UnavailableError: the disk takes no writes.
        """
        if self._writing is not None:
            await asyncio.shield(self._writing)
            self._writing = None

    async def _write(
        self,
        step: int,
        groups: Mapping[str, int],
        snapshot: Snapshot,
        carried: saved.Saved,
        wanted: Iterable[asyncio.Future[Path]],
        stop: asyncio.Event,
    ) -> None:
        """Makes a snapshot durable, then settles every entry of its groups."""
        root, kept, began = self._checkpoints, self._settings.learner.checkpoints, time.perf_counter()
        texts = {saved.FILE: carried.encode()}
        with spans.span(CHECKPOINT):
            beside = await self._disk.written(
                "checkpoint", step, root, lambda: checkpoint.write(root, step, snapshot, texts), stop
            )
            # Another learner may have begun while this one wrote: `written` asks again.
            path = await self._disk.written("checkpoint", step, root, lambda: checkpoint.complete(beside), stop)
            await asyncio.to_thread(snapshot.close)
        self._measured("write", began)
        metrics.CHECKPOINTED.set_to_current_time()
        protected = await protected_versions(self._settings, self._run, step)
        await asyncio.to_thread(checkpoint.remove_old, root, kept.keep, protected, kept.keep_seconds)
        await self._disk.written("trained_list", step, path, lambda: checkpoint.list_trained(path, groups), stop)
        self._trained |= groups
        for name, (entry, of) in list(self._waiting.items()):
            if entry.group in groups:
                await self._consumer.end(entry, End.trained(of))
                del self._waiting[name]
        self._has_made_room = bool(groups)
        for future in wanted:
            if not future.done():
                future.set_result(path)

    def _measured(self, part: str, began: float) -> None:
        metrics.CHECKPOINT_SECONDS.labels(part).inc(time.perf_counter() - began)

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
    def _is_behind(self) -> bool:
        """Whether something was trained on that no checkpoint contains, on disk or on its way."""
        return any(step > self._covered for _, step in self._waiting.values())

    @property
    def _checkpoints(self) -> Path:
        return self._settings.run.checkpoints_root
