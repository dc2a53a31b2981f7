"""Scored groups on their way into a batch: those of a step, and those that leave their stream with a reason."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np

from services.learner import metrics
from services.learner.checkpointing.durable import Durable
from services.learner.checkpointing.publisher import Publisher
from services.learner.data.check import check_versions
from services.learner.data.messages import Scored, decode_group, without_arrays
from services.learner.monitoring.collapse import RewardWatch
from services.learner.monitoring.samples import SampleKeeper
from services.learner.settings import Settings
from services.learner.trainer import Trainer
from shared.errors import CorruptDataError, InvalidInputError, PreconditionError
from shared.payloads.bulk import PayloadError
from shared.streams.consumer import Consumer, End, Entry, EntryRef
from shared.streams.keys import Stream
from shared.streams.run import Run


@dataclass(slots=True)
class Collected:
    """The groups of a step, as far as they have come."""

    groups: list[Scored] = field(default_factory=list)
    doubles: list[EntryRef] = field(default_factory=list)  # other entries of the same groups

    @property
    def refs(self) -> list[EntryRef]:
        """Every entry that a step on these groups settles."""
        return [*(scored.entry.ref for scored in self.groups), *self.doubles]


class Collector:
    """Reads what a batch still lacks. What it reads is in the batch then, or out of its stream with a reason.

    Attributes:
        collapsed_to: the running mean of the reward when it collapsed; None where it has not, or nobody watches it.
    """

    def __init__(
        self,
        settings: Settings,
        trainer: Trainer,
        run: Run,
        consumer: Consumer,
        durable: Durable,
        publisher: Publisher,
        samples: SampleKeeper,
    ) -> None:
        self.collapsed_to: float | None = None
        self._watch = RewardWatch.of(settings)
        self._settings = settings
        self._trainer = trainer
        self._run = run
        self._consumer = consumer
        self._durable = durable
        self._publisher = publisher
        self._samples = samples
        self._batch = Collected()
        self._training = Collected()
        self._reads_ahead = False
        self._collecting = 0  # the step that groups are read for, while the one before trains

    def __len__(self) -> int:
        """Groups in the batch."""
        return len(self._batch.groups)

    @property
    def is_full(self) -> bool:
        return len(self) >= self._settings.run.groups_per_step

    async def read(self, *, drops: bool) -> int:
        """Gives the number of entries read, which may be 0. They are let go on return, but for the batch.

        Args:
            drops: the run has finished, and what still comes is not wanted.
        """
        missing = self._settings.run.groups_per_step - len(self)
        # What was trained on only waits to be settled, however often a learner was killed since.
        entries = await self._consumer.read(missing, spared=self._durable.contains)
        for entry in entries:
            await self._accept(entry, drops)
        return len(entries)

    def take(self) -> Collected:
        """The batch, which begins anew."""
        batch, self._batch = self._batch, Collected()
        return batch

    @asynccontextmanager
    async def ahead(self, batch: Collected) -> AsyncIterator[None]:
        """Reads groups for the next batch while the block trains on this one, where a payload store has their arrays.

        Their arrays are read, decoded and checked meanwhile. In a stream a group has them in its entry, and Redis would
        hold what is in this process a second time; so what is on the stream is read when the step is done.

        On return, what has become too old through the step has left the batch, as if it had been read only now.
        """
        self._training, self._reads_ahead = batch, self._run.bulk is not None
        self._collecting = self._trainer.step + 2
        task = asyncio.create_task(self._read_ahead())
        try:
            yield
        finally:
            self._reads_ahead = False
            await task
            self._training, self._collecting = Collected(), 0
        for ref in batch.doubles:  # of a batch that was skipped; no checkpoint will settle what came since
            if not self._durable.contains(ref.group):
                await self._drop(ref, "repeated")
        await self._drop_stale()

    async def _read_ahead(self) -> None:
        while self._reads_ahead and not self.is_full:
            await self.read(drops=False)

    async def _drop_stale(self) -> None:
        kept = Collected()
        for scored in self._batch.groups:
            doubles = [ref for ref in self._batch.doubles if ref.group == scored.entry.group]
            if self._is_stale(scored):
                await self._leave_out(scored, "stale")
                for ref in doubles:
                    await self._drop(ref, "stale")
            else:
                kept.groups.append(scored)
                kept.doubles += doubles
        self._batch = kept

    async def drop(self, batch: Collected, reason: str) -> None:
        """Ends all its entries untrained."""
        for ref in batch.refs:
            await self._drop(ref, reason)

    def watch_anew(self) -> None:
        """Forgets the rewards so far, and that they collapsed."""
        self.collapsed_to = None
        if self._watch:
            self._watch.restart()

    async def check_stuck(self) -> None:
        """Raises PreconditionError where the groups of a step do not fit into their stream, so that none would end."""
        if not len(self) or not await self._run.has_waiting_producer(Stream.SCORED):
            return
        held = (await self._run.backlog())[Stream.SCORED]
        if held.entries == len(self._batch.refs):
            raise PreconditionError(
                f"streams.max_bytes is {self._settings.streams.max_bytes}: stream scored is full with {held.entries} "
                f"groups of {held.bytes} bytes, and a step takes {self._settings.run.groups_per_step}; raise it, or "
                "lower run.groups_per_step, rollout.n or rollout.max_tokens"
            )

    async def _accept(self, entry: Entry, drops: bool) -> None:
        if await self._durable.knows(entry):
            return
        for batch in (self._training, self._batch):
            if any(scored.entry.group == entry.group for scored in batch.groups):
                if entry.id not in {ref.id for ref in batch.refs}:
                    batch.doubles.append(entry.ref)
                return
        try:
            scored = await asyncio.to_thread(self._decode, entry)
        except PayloadError as error:
            metrics.DROPPED.labels("dead").inc(entry.trajectories)
            await self._consumer.bury(entry, error.reason, str(error))
            return
        except (CorruptDataError, InvalidInputError) as error:
            metrics.DROPPED.labels("dead").inc(entry.trajectories)
            await self._consumer.bury(entry, "bad_trajectory", str(error))
            return
        await self._consumer.vouch(entry)
        if drops:
            await self._drop(entry, "run_finished")
            return
        self._watch_reward(scored)
        reason = self._trainer.drop_reason(scored.group)
        if reason is None and self._is_stale(scored):
            reason = "stale"
        if reason is None:
            self._batch.groups.append(scored)
            return
        await self._leave_out(scored, reason)

    def _is_stale(self, scored: Scored) -> bool:
        return self._trainer.step - scored.oldest_version > self._settings.run.max_staleness

    async def _leave_out(self, scored: Scored, reason: str) -> None:
        step = self._collecting or self._trainer.step + 1
        await asyncio.to_thread(self._samples.drop, scored, reason, step)
        await self._drop(scored.entry, reason)

    def _watch_reward(self, scored: Scored) -> None:
        if self._watch is None:
            return
        collapsed = self._watch.add(float(np.mean(scored.rewards)))
        metrics.RUNNING_REWARD.set(self._watch.mean)
        metrics.COLLAPSED.set(collapsed)
        if collapsed and self.collapsed_to is None:
            self.collapsed_to = self._watch.mean

    def _decode(self, entry: Entry) -> Scored:
        """In a thread: the payloads of a batch may take seconds, and the event loop has heartbeats to send."""
        scored = decode_group(entry, self._run.bulk)
        self._trainer.check(scored.group)
        check_versions(scored.group, self._publisher.newest)
        return without_arrays(scored) if self._trainer.has_ranks else scored

    async def _drop(self, entry: Entry | EntryRef, reason: str) -> None:
        if await self._consumer.end(entry, End.dropped(reason)):
            metrics.DROPPED.labels(reason).inc(entry.trajectories)
