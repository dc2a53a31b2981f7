"""Worker processes that judge for one verifier.

Cheap items share a message, expensive ones do not: a chunk is as many as take a few milliseconds. An item that takes
longer than that keeps its worker, and what shared its message goes to another one. At its deadline the worker is
killed and the item has timed out. A worker that dies takes down its current item only.
"""

import asyncio
import logging
import math
from collections import deque
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple

from services.reward import metrics
from services.reward.outcomes import Outcome, Scored
from services.reward.pool.worker import Report, Worker, WorkerDiedError
from services.reward.verifiers.base import BatchVerifier, Item, Verdict, Verifier
from shared.errors import PreconditionError, RouterShiftError, UnavailableError

log = logging.getLogger(__name__)

_CHUNK_SECONDS = 0.02  # a chunk is meant to take so long: between two of them a worker waits for about a millisecond
_SLOW_SECONDS = 0.05  # an item that takes longer keeps its worker to itself
_SMOOTHING = 0.2  # weight of the last chunk in the running mean of the seconds of an item
_STARTS = 3  # attempts to replace a dead worker, 0.1 s and then twice as long apart
_FIRST_PAUSE_SECONDS = 0.1


class _Batch:
    """The items of one call."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.results: list[Scored | None] = [None] * len(items)
        self.left = len(items)
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def settle(self, place: int, scored: Scored) -> None:
        self.results[place] = scored
        self.left -= 1
        if not self.left and not self.done.done():
            self.done.set_result(None)


class _Task(NamedTuple):
    batch: _Batch
    place: int
    alone: bool  # it may have brought down what it was judged with

    @property
    def item(self) -> Item:
        return self.batch.items[self.place]


class Pool:
    def __init__(
        self,
        name: str,
        verifier: Verifier,
        *,
        processes: int,
        timeout_seconds: float,
        memory_mb: int,
        printed_kb: int,
    ) -> None:
        self._name = name
        metrics.LOST.labels(name)  # from 0 on: Prometheus sees no increase from nothing to 1
        self._verifier = verifier
        batched = isinstance(verifier, BatchVerifier) and verifier.batch_size > 1
        self._batch_size = verifier.batch_size if batched else None  # type: ignore[attr-defined]  # it is one
        # A batch uses the cores by itself, and two models would need twice the memory.
        self._processes = 1 if self._batch_size else processes
        self._timeout = timeout_seconds
        self._memory_mb = memory_mb
        self._printed_kb = printed_kb
        self._batches: set[_Batch] = set()
        self._queue: deque[_Task] = deque()
        self._work = asyncio.Event()
        self._idle = 0
        self._seconds = _CHUNK_SECONDS
        self._slots: list[asyncio.Task[None]] = []
        self._ending: set[asyncio.Task[None]] = set()
        self._broken: RouterShiftError | None = None

    async def start(self) -> None:
        """Starts the workers.

        Raises:
            RouterShiftError: the verifier cannot judge here, or its process ends.
        """
        starting = [asyncio.create_task(self._worker()) for _ in range(self._processes)]
        try:
            await asyncio.wait(starting)
        finally:
            for start in starting:  # those that are not done, as we are cancelled
                start.cancel()
            ended = await asyncio.gather(*starting, return_exceptions=True)
            workers = [w for w in ended if isinstance(w, Worker)]
            if len(workers) < self._processes:
                await asyncio.gather(*(w.kill() for w in workers))
        for error in ended:
            if isinstance(error, (WorkerDiedError, OSError)):
                raise self._explain(error) from None
            if isinstance(error, BaseException):
                raise error
        self._slots = [asyncio.create_task(self._slot(w)) for w in workers]

    async def judge(self, items: Sequence[Item]) -> list[Scored]:
        """One result an item, in order. A caller that is cancelled takes its waiting items along.

        Raises:
            PreconditionError: workers die and cannot be replaced.
            UnavailableError: closed meanwhile.
        """
        if self._broken:
            raise self._broken
        batch = _Batch(items)
        if items:
            self._batches.add(batch)
            self._queue.extend(_Task(batch, i, False) for i in range(len(items)))
            self._work.set()
            try:
                await batch.done
            finally:
                self._batches.discard(batch)
        return batch.results  # type: ignore[return-value]  # all are there

    async def close(self) -> None:
        """Ends the workers; returns when they are gone."""
        self._break(UnavailableError(f"verifier {self._name} is stopping"))
        for slot in self._slots:
            slot.cancel()
        await asyncio.gather(*self._slots, return_exceptions=True)
        await asyncio.gather(*self._ending)

    async def _slot(self, worker: Worker) -> None:
        """Keeps one worker busy, and replaces it when it is lost."""
        fit = True
        try:
            while True:
                if not fit:
                    worker = await self._replace()
                    fit = True
                tasks = await self._take()
                fit = False
                try:
                    fit = await self._chunk(worker, tasks)
                finally:
                    if not fit:
                        self._end(worker)
        except RouterShiftError as error:
            self._break(error)
        except Exception as error:
            log.exception("verifier %s: its pool broke", self._name)
            self._break(UnavailableError(f"verifier {self._name}: {type(error).__name__}; see the service's log"))
        finally:
            if fit:
                await worker.stop()

    def _end(self, worker: Worker) -> None:
        """Kills it beside the work: its replacement need not wait."""
        ending = asyncio.create_task(worker.kill())
        self._ending.add(ending)
        ending.add_done_callback(self._ending.discard)

    async def _worker(self) -> Worker:
        return await Worker.start(self._name, self._verifier, self._memory_mb, self._printed_kb)

    async def _replace(self) -> Worker:
        pause = _FIRST_PAUSE_SECONDS
        for attempt in range(1, _STARTS + 1):
            try:
                return await self._worker()
            except (WorkerDiedError, OSError) as error:
                log.warning("verifier %s does not start, attempt %d: %s", self._name, attempt, error)
                last: Exception = error
            await asyncio.sleep(pause)
            pause *= 2
        raise self._explain(last)

    def _explain(self, error: Exception) -> RouterShiftError:
        return PreconditionError(f"verifier {self._name} does not start: {error}; see the service's log")

    def _break(self, error: RouterShiftError) -> None:
        """Nothing will be judged any more."""
        self._broken = self._broken or error
        self._queue.clear()
        for batch in self._batches:
            if not batch.done.done():
                batch.done.set_exception(self._broken)

    async def _take(self) -> list[_Task]:
        """The next chunk. Waits for one."""
        self._idle += 1
        try:
            while True:
                while self._queue and self._queue[0].batch.done.done():
                    self._queue.popleft()
                if self._queue:
                    break
                self._work.clear()
                await self._work.wait()
            # As large as the time allows, but not so large that another idle worker gets nothing.
            size = self._batch_size or min(
                math.ceil(_CHUNK_SECONDS / self._seconds), math.ceil(len(self._queue) / self._idle)
            )
        finally:
            self._idle -= 1
        tasks = [self._queue.popleft()]
        while len(tasks) < size and self._queue and not (tasks[0].alone or self._queue[0].alone):
            tasks.append(self._queue.popleft())
        return tasks

    async def _chunk(self, worker: Worker, tasks: list[_Task]) -> bool:
        """Has them judged; False where the worker is lost. What it has not judged is back in the queue."""
        pending = dict(enumerate(tasks, worker.next))
        at_once = bool(self._batch_size) and len(tasks) > 1
        try:
            await worker.send([task.item for task in tasks])
            while True:
                try:
                    async with asyncio.timeout(self._patience(worker, len(pending) > 1 and not at_once)):
                        report = await worker.receive()
                except TimeoutError:
                    current, age = worker.current, worker.age
                    if age >= self._timeout:
                        self._blame(worker, pending, at_once, Outcome.TIMED_OUT, self._late())
                        return False
                    if age >= _SLOW_SECONDS and current is not None and not at_once:
                        worker.take_back()
                        self._put_back([pending.pop(i) for i in list(pending) if i != current])
                    continue
                self._settle(pending, report)
                if report.last:
                    break
        except WorkerDiedError as error:
            place = self._verifier.place
            self._blame(worker, pending, at_once, Outcome.FAILED, f"{place and f'{place}: '}{error}")
            return False
        self._put_back(list(pending.values()))
        return True

    def _late(self) -> str:
        said, place = f"none within {self._timeout:g} s", self._verifier.place
        fix = f"make it faster, or raise reward.verifiers.{self._name}.timeout_seconds"
        return f"{place}: {said}; {fix}" if place else said

    def _patience(self, worker: Worker, shared: bool) -> float:
        """How long to wait for a message before looking at where the worker is."""
        age = worker.age
        if not shared:
            return max(self._timeout - age, 0.001)
        return min(_SLOW_SECONDS - age if age < _SLOW_SECONDS else _SLOW_SECONDS, self._timeout)

    def _blame(self, worker: Worker, pending: dict[int, _Task], at_once: bool, outcome: Outcome, error: str) -> None:
        """Settles the item that a lost worker was at. The others are judged again: alone, if it may be any of them."""
        current = None if at_once else worker.current
        if current is None:
            culprits = [i for i, task in pending.items() if task.alone]
        else:
            culprits = [i for i in pending if i == current]
        metrics.LOST.labels(self._name).inc()
        for i in culprits:
            task = pending.pop(i)
            lost = Scored(outcome, None, self._name, self._verifier.judged_by, worker.age, error)
            task.batch.settle(task.place, lost)
        self._put_back([task._replace(alone=current is None) for task in pending.values()])

    def _put_back(self, tasks: Sequence[_Task]) -> None:
        self._queue.extendleft(reversed(tasks))
        self._work.set()

    def _settle(self, pending: dict[int, _Task], report: Report) -> None:
        verdicts = [_read(verdict) for verdict in report.verdicts]
        name, version = self._name, self._verifier.judged_by
        for index, which, micros in zip(count(report.first), report.which, report.micros, strict=False):
            if task := pending.pop(index, None):
                outcome, verdict, error = verdicts[which]
                task.batch.settle(task.place, Scored(outcome, verdict, name, version, micros * 1e-6, error))
        if report.micros:
            mean = max(sum(report.micros) / len(report.micros), 1.0) * 1e-6
            self._seconds += _SMOOTHING * (mean - self._seconds)


def _read(verdict: Any) -> tuple[Outcome, Verdict | None, str]:
    if isinstance(verdict, str):
        outcome, _, error = verdict.partition(": ")
        return Outcome(outcome), None, error
    reward, parts = verdict
    return Outcome.SCORED, Verdict(reward, parts), ""
