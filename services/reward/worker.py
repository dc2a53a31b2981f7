"""The stream loop of reward: groups in, scored groups out."""

import asyncio
import logging
from collections.abc import Sequence

from routershift import wire
from services.reward import metrics
from services.reward.groups import RawGroup
from services.reward.messages import encode_score
from services.reward.outcomes import Outcome, Scored
from services.reward.scoring import Scorer
from services.reward.unscored import UnscoredSamples
from services.reward.verifiers.base import Item
from shared.errors import (
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    PreconditionError,
    UnavailableError,
)
from shared.streams.consumer import Consumer, End, Entry
from shared.streams.keys import Stream
from shared.streams.solve_rates import SolveRates
from shared.tracing import spans
from shared.tracing.kinds import SCORE, Scoring

log = logging.getLogger(__name__)

# Direct calls may have filled the queue; what they hold is done in about the time of a verification.
_OVERLOAD_PAUSE_SECONDS = 0.1


class RewardWorker:
    """Scores one group at a time for each of the tasks that call it."""

    def __init__(
        self,
        consumer: Consumer,
        scorer: Scorer,
        attempts: int,
        solve_rates: SolveRates,
        unscored: UnscoredSamples | None = None,
    ) -> None:
        """Args: unscored: where groups without a verdict are kept for people; None: nowhere."""
        self._consumer = consumer
        self._unscored = unscored
        self._scorer = scorer
        self._attempts = attempts
        self._solve_rates = solve_rates

    async def handle(self, entry: Entry) -> None:
        """Hands the group over scored; drops it, counted, where a sample has no verdict after all attempts."""
        try:
            with spans.span(SCORE, entry.traceparent) as span:
                group = RawGroup(entry.payload)
                results = await self._score(group, span)
        except (CorruptDataError, InvalidInputError, NotFoundError) as error:
            await self._consumer.bury(entry, "bad_group", str(error))
            return
        if failed := _failure(results):
            reason = f"verifier_{failed.outcome}"
            if await self._consumer.end(entry, End.dropped(reason)):
                metrics.DROPPED.labels(reason).inc(entry.trajectories)
                log.warning("dropped group %s: %s: %s", entry.group, reason, failed.error)
                if self._unscored:
                    await self._unscored.keep(entry, results, reason)
            return
        scores = [encode_score(result) for result in results]
        if await self._consumer.hand_over(entry, Stream.SCORED, group.scored(scores)):
            await self._solve_rates.record_scores(group.prompt.problem_id, scores)

    async def _score(self, group: RawGroup, span: spans.Span[Scoring]) -> list[Scored]:
        """The result of each sample. A refusal is final: the same item would be refused again."""
        prompt = group.prompt
        reference = wire.decode_struct(prompt.reference)
        span.set({"verifier": prompt.verifier, "samples": len(group.texts)})
        results: dict[int, Scored] = {}
        seconds: list[float] = []
        for attempt in range(1, self._attempts + 1):
            missing = [i for i in range(len(group.texts)) if i not in results or results[i].verdict is None]
            scored = await self._ask(
                prompt.verifier,
                [
                    Item(prompt.text, group.texts[i], reference, group.special_tokens[i], group.messages[i])
                    for i in missing
                ],
            )
            results |= dict(zip(missing, scored, strict=True))
            seconds += [result.seconds for result in scored]
            span.set({"attempts": attempt, "seconds": sum(seconds), "slowest_seconds": max(seconds, default=0.0)})
            failure = _failure(scored)
            if failure is None or failure.outcome is Outcome.REFUSED:
                break
        return [results[i] for i in range(len(group.texts))]

    async def _ask(self, verifier: str, items: Sequence[Item]) -> list[Scored]:
        """Waits for room: a group that was taken from the stream is not given up because of others.

        Raises:
            UnavailableError: the verifier's processes do not start now; the group is redelivered when they may.
        """
        while True:
            try:
                return await self._scorer.score(verifier, items)
            except PreconditionError as error:
                raise UnavailableError(str(error)) from error
            except OverloadedError as error:
                log.info("waiting: %s", error)
                await asyncio.sleep(_OVERLOAD_PAUSE_SECONDS)


def _failure(results: Sequence[Scored]) -> Scored | None:
    """A result without a verdict, a refusal where there is one; None where all have theirs."""
    failures = [result for result in results if result.verdict is None]
    refused = [result for result in failures if result.outcome is Outcome.REFUSED]
    return next(iter([*refused, *failures]), None)
