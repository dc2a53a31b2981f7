"""The stream loop of environments: prompts in, groups of episodes out."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from routershift.v1 import trajectory_pb2 as pb
from services.environments import metrics
from services.environments.playing.failures import EpisodeFailedError
from shared.errors import (
    CorruptDataError,
    DeadlineError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
)
from shared.streams.consumer import Consumer, End, Entry, parse
from shared.streams.keys import Stream
from shared.streams.solve_rates import SolveRates
from shared.tracing import spans
from shared.tracing.kinds import PLAY, Playing

log = logging.getLogger(__name__)

_PAUSE_SECONDS = 1.0
_DRAIN_SHARE = 0.8  # of the time to drain; in the rest, environments are closed


class Plays(Protocol):
    """What plays a group of episodes to its end; see `Player.play`."""

    async def play(self, prompt: pb.Prompt, *, return_router: bool = True) -> pb.TrajectoryGroup: ...


class EnvironmentsWorker:
    """Plays one group for each of the tasks that call it."""

    def __init__(
        self,
        consumer: Consumer,
        player: Plays,
        fresh: Callable[[], Awaitable[object]],
        away: Callable[[], Awaitable[object]],
        attempts: int,
        solve_rates: SolveRates,
        *,
        return_router: bool = True,
    ) -> None:
        """
        Args:
            fresh: returns as soon as generation serves weights whose episodes can be trained on.
            away: returns as soon as generation does not answer.
            attempts: plays of a group before it is dropped.
            return_router: with the experts of each sampled token.
        """
        self._consumer = consumer
        self._player = player
        self._fresh = fresh
        self._away = away
        self._attempts = attempts
        self._solve_rates = solve_rates
        self._return_router = return_router

    async def run(self, groups: int, stop: asyncio.Event, drain_seconds: float) -> None:
        """Plays groups until `stop`, and those that it holds then as far as there is time and generation answers.

        Episodes may last longer than a stop may take, and generation may be told to stop at the same time. What is not
        handed over by then is delivered again, and played anew by another process.

        Args:
            groups: at once.
            drain_seconds: from `stop` to the end of the process.
        """
        reading = asyncio.create_task(self._consumer.each(self.handle, lambda: groups - self._consumer.held, stop))
        stopped = asyncio.create_task(stop.wait())
        away: asyncio.Future[object] | None = None
        try:
            await asyncio.wait({reading, stopped}, return_when=asyncio.FIRST_COMPLETED)
            away = asyncio.ensure_future(self._away())
            await asyncio.wait(
                {reading, away}, timeout=_DRAIN_SHARE * drain_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if reading.done():
                reading.result()
            else:
                log.info("%d groups are left to be played anew", self._consumer.held)
        finally:
            for waiting in (stopped, away):
                if waiting is not None:
                    waiting.cancel()
            reading.cancel()
            await asyncio.wait({reading})

    async def handle(self, entry: Entry) -> None:
        """Hands over the group, to reward where the prompt names a verifier, else scored, to the learner.

        A prompt that cannot be played goes to the dead letters. A group whose episodes failed is played anew from the
        start, never half, and dropped where that fails too often. While generation does not serve, it waits.
        """
        began = time.perf_counter()
        try:
            with spans.span(PLAY, entry.traceparent) as span, metrics.PLAYING.track_inprogress():
                prompt = parse(pb.Prompt, entry)
                group = await self._play(entry, prompt, span)
        except (CorruptDataError, InvalidInputError, NotFoundError) as error:
            await self._consumer.bury(entry, "bad_prompt", str(error))
            return
        except EpisodeFailedError as error:
            if await self._consumer.end(entry, End.dropped(error.reason)):
                metrics.DROPPED.labels(error.reason).inc(entry.trajectories)
                log.warning("dropped group %s: %s: %s", entry.group, error.reason, error)
            return
        destination = Stream.ROLLOUTS if prompt.verifier else Stream.SCORED
        if not await self._consumer.hand_over(entry, destination, group):
            return
        metrics.GROUP_SECONDS.observe(time.perf_counter() - began)
        metrics.count_group(prompt.environment, group.trajectories)
        if destination is Stream.SCORED:
            await self._solve_rates.record_scores(prompt.problem_id, [each.score for each in group.trajectories])

    async def _play(self, entry: Entry, prompt: pb.Prompt, span: spans.Span[Playing]) -> pb.TrajectoryGroup:
        failures = 0
        while True:
            await self._fresh()
            try:
                group = await self._player.play(prompt, return_router=self._return_router)
            except EpisodeFailedError as error:
                failures += 1
                metrics.FAILED.labels(prompt.environment, error.reason).inc()
                span.set({"failures": failures})
                if failures == self._attempts:
                    raise
                log.info("group %s is played again: %s: %s", entry.group, error.reason, error)
            except (UnavailableError, DeadlineError, OverloadedError) as error:
                log.warning("group %s is played again: generation: %s", entry.group, error)
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                span.set({"environment": prompt.environment, "samples": len(group.trajectories)})
                span.set({"turns": sum(map(metrics.turns_of, group.trajectories))})
                return group
