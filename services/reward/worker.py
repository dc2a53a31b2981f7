"""The stream loop of reward: groups in, scored groups out."""

import asyncio
import logging
from collections.abc import Sequence

from routershift import wire
from routershift.v1 import trajectory_pb2 as pb
from services.reward import metrics
from services.reward.early import EarlyScores
from services.reward.messages import decode_items, encode_score
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
from shared.streams.consumer import Consumer, End, Entry, parse_group
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
        early: EarlyScores,
        attempts: int,
        solve_rates: SolveRates,
        unscored: UnscoredSamples | None = None,
    ) -> None:
        """
        Args:
            early: what samples were scored to before their group came.
            unscored: where groups without a verdict are kept for people; None: nowhere.
        """
        self._consumer = consumer
        self._unscored = unscored
        self._scorer = scorer
        self._early = early
        self._attempts = attempts
        self._solve_rates = solve_rates

    async def handle(self, entry: Entry) -> None:
        """Hands the group over scored; drops it, counted, where a sample has no verdict after all attempts."""
        try:
            with spans.span(SCORE, entry.traceparent) as span:
                prompt, items = _parsed(entry)
                results = await self._score(prompt.verifier, items, span)
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
        if await self._consumer.pass_on(entry, Stream.SCORED, wire.encode_scores(scores)):
            await self._solve_rates.record_scores(prompt.problem_id, scores)

    async def _score(self, verifier: str, items: Sequence[Item], span: spans.Span[Scoring]) -> list[Scored]:
        """The result of each item. A refusal is final: the same item would be refused again."""
        results = await self._early.take(verifier, items)
        span.set({"verifier": verifier, "samples": len(items), "early_samples": len(results)})
        seconds: list[float] = []
        for attempt in range(1, self._attempts + 1):
            missing = [i for i in range(len(items)) if i not in results or results[i].verdict is None]
            if not missing:
                break
            scored = await self._ask(verifier, [items[i] for i in missing])
            results |= dict(zip(missing, scored, strict=True))
            seconds += [result.seconds for result in scored]
            span.set({"attempts": attempt, "seconds": sum(seconds), "slowest_seconds": max(seconds, default=0.0)})
            failure = _failure(scored)
            if failure is None or failure.outcome is Outcome.REFUSED:
                break
        return [results[i] for i in range(len(items))]

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


def _parsed(entry: Entry) -> tuple[pb.Prompt, list[Item]]:
    """Without the arrays, which nobody here needs: beside the entry's own bytes they are soon let go."""
    group = parse_group(entry)
    prompt = pb.Prompt()
    prompt.CopyFrom(group.prompt)
    return prompt, decode_items(group)


def _failure(results: Sequence[Scored]) -> Scored | None:
    """A result without a verdict, a refusal where there is one; None where all have theirs."""
    failures = [result for result in results if result.verdict is None]
    refused = [result for result in failures if result.outcome is Outcome.REFUSED]
    return next(iter([*refused, *failures]), None)
