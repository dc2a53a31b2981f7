"""Scores items with named verifiers. The one path for RPC, stream and command line."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from services.reward import metrics
from services.reward.outcomes import Outcome, Scored, checked, unscored
from services.reward.pool.pool import Pool
from services.reward.settings import RewardSettings
from services.reward.verifiers.base import AsyncVerifier, Item, Verdict, Verifier
from services.reward.verifiers.registry import unknown_in_words
from shared.errors import InvalidInputError, NotFoundError, OverloadedError

log = logging.getLogger(__name__)

# Items of one verifier that wait on others at the same time; the rest waits here.
_ASKED_AT_ONCE = 128


class UnscoredError(Exception):
    """A part of a composite verifier gave no verdict."""

    def __init__(self, scored: Scored) -> None:
        super().__init__(f"{scored.verifier} {scored.outcome}: {scored.error}")
        self.outcome = scored.outcome


class Scorer:
    """Runs verifiers with a deadline and types what comes of it.

    Those that compute have worker processes, started when first used; those that ask others run in the event loop.
    Close it, also where it was never started.
    """

    def __init__(self, verifiers: Mapping[str, Verifier | AsyncVerifier], settings: RewardSettings) -> None:
        self.verifiers: Mapping[str, Verifier | AsyncVerifier] = verifiers
        self._settings = settings
        self._pools: dict[str, asyncio.Task[Pool]] = {}
        self._turns = {name: asyncio.Semaphore(_ASKED_AT_ONCE) for name in verifiers}
        self._queued = 0

    async def start(self, names: Iterable[str]) -> None:
        """Starts the workers of these verifiers now, so that what keeps them from judging is known now.

        Raises:
            RouterShiftError: the first verifier that cannot judge says why.
        """
        for name in names:
            if isinstance(verifier := self.verifiers[name], Verifier):
                await self._pool(name, verifier)

    async def score(
        self, verifier: str, items: Sequence[Item], *, admitted: Callable[[], Awaitable[None]] | None = None
    ) -> list[Scored]:
        """One result an item, in order.

        Args:
            admitted: called once there is room for the items, before they are judged.

        Raises:
            NotFoundError: no verifier of that name.
            InvalidInputError: more items than `max_queued`.
            OverloadedError: more items than `max_queued` with those that are queued.
            RouterShiftError: the verifier cannot judge here; see its `start`.
        """
        if verifier not in self.verifiers:
            raise NotFoundError(unknown_in_words(verifier, self.verifiers))
        limit = self._settings.max_queued
        if len(items) > limit:
            raise InvalidInputError(f"{len(items)} items at once; reward.max_queued = {limit}; send fewer at once")
        if self._queued + len(items) > limit:
            raise OverloadedError(
                f"{self._queued} items are queued and {len(items)} more exceed reward.max_queued = {limit}; "
                "send fewer at once, or wait"
            )
        self._queued += len(items)
        metrics.QUEUED.set(self._queued)
        try:
            if admitted is not None:
                await admitted()
            scored = await self._judge(verifier, items)
        finally:
            self._queued -= len(items)
            metrics.QUEUED.set(self._queued)
        return scored

    async def verdicts(self, verifier: str, items: Sequence[Item], asked_by: Sequence[str] = ()) -> list[Verdict]:
        """For verifiers made of others, whose items are already counted.

        Args:
            asked_by: the verifiers that wait for these verdicts, outermost first.

        Raises:
            InvalidInputError: the verifier waits for itself.
            UnscoredError: one of the items has no verdict.
        """
        if verifier in asked_by:  # each item holds a turn while it waits, so that they might wait for ever
            raise InvalidInputError(f"verifier {verifier!r} is a part of itself: {' > '.join([*asked_by, verifier])}")
        verdicts = []
        for scored in await self._judge(verifier, items, asked_by):
            if scored.verdict is None:
                raise UnscoredError(scored)
            verdicts.append(scored.verdict)
        return verdicts

    async def close(self) -> None:
        """Ends the workers and frees channels."""
        for name, starting in self._pools.items():
            starting.cancel()
            try:
                await (await starting).close()
            except (asyncio.CancelledError, Exception):
                log.info("verifier %s never started", name)
        for verifier in self.verifiers.values():
            if isinstance(verifier, AsyncVerifier):
                await verifier.close()

    async def _judge(self, name: str, items: Sequence[Item], asked_by: Sequence[str] = ()) -> list[Scored]:
        verifier = self.verifiers[name]
        if isinstance(verifier, Verifier):
            pool = await self._pool(name, verifier)
            scored = await pool.judge(items)
        else:
            scored = list(await asyncio.gather(*(self._ask(name, verifier, item, asked_by) for item in items)))
        _count(name, scored)
        return scored

    async def _pool(self, name: str, verifier: Verifier) -> Pool:
        starting = self._pools.get(name)
        if starting is None or (starting.done() and (starting.cancelled() or starting.exception())):
            starting = self._pools[name] = asyncio.create_task(self._start(name, verifier))
        return await asyncio.shield(starting)  # others may wait for the same start

    async def _start(self, name: str, verifier: Verifier) -> Pool:
        pool = Pool(
            name,
            verifier,
            processes=self._settings.processes,
            timeout_seconds=self._timeout(verifier),
            memory_mb=self._settings.memory_mb,
            printed_kb=self._settings.printed_kb,
        )
        await pool.start()
        return pool

    def _timeout(self, verifier: Verifier | AsyncVerifier) -> float:
        return verifier.settings.timeout_seconds or self._settings.timeout_seconds

    async def _ask(self, name: str, verifier: AsyncVerifier, item: Item, asked_by: Sequence[str]) -> Scored:
        verdict, error = None, ""
        async with self._turns[name]:
            began = time.monotonic()
            try:
                async with asyncio.timeout(self._timeout(verifier)) as deadline:
                    verdict = checked(await verifier.verify(item, _Others(self, deadline, (*asked_by, name))))
                outcome = Outcome.SCORED
            except TimeoutError:
                outcome, error = Outcome.TIMED_OUT, f"none within {self._timeout(verifier):g} s"
            except UnscoredError as failure:
                outcome, error = failure.outcome, str(failure)
            except Exception as failure:  # whatever a verifier raises is its outcome, and never ends the service
                outcome, error = unscored(failure, verifier)
            return Scored(outcome, verdict, name, verifier.judged_by, time.monotonic() - began, error)


class _Others:
    """The other verifiers, as one item's verifier sees them: its clock stands still while they judge."""

    def __init__(self, others: Scorer, deadline: asyncio.Timeout, asked_by: Sequence[str]) -> None:
        self.verifiers = others.verifiers
        self._others = others
        self._asked_by = asked_by
        self._deadline = deadline
        self._waiting = 0
        self._left = 0.0

    async def verdicts(self, verifier: str, items: Sequence[Item]) -> list[Verdict]:
        now = asyncio.get_running_loop().time
        if (when := self._deadline.when()) is not None:
            self._left = when - now()
            self._deadline.reschedule(None)
        self._waiting += 1
        try:
            return await self._others.verdicts(verifier, items, self._asked_by)
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._deadline.reschedule(now() + self._left)


def _count(name: str, scored: Sequence[Scored]) -> None:
    metrics.SECONDS.observe(name, [s.seconds for s in scored])
    metrics.REWARD.observe(name, [s.verdict.reward for s in scored if s.verdict is not None])
    for outcome, count in Counter(s.outcome for s in scored).items():
        metrics.SCORES.labels(name, outcome).inc(count)
        if outcome is not Outcome.SCORED:
            error = next(s.error for s in scored if s.outcome is outcome)
            log.warning("verifier %s %s %d of %d items: %s", name, outcome, count, len(scored), error)
