"""The stream loop of reward: groups in, scored groups out."""

import asyncio
import logging
from collections.abc import Sequence

from google.protobuf import json_format

from routershift.v1 import trajectory_pb2 as pb
from services.reward import metrics
from services.reward.messages import encode_score
from services.reward.outcomes import Outcome, Scored
from services.reward.scoring import Scorer
from services.reward.verifiers.base import Item
from shared.errors import (
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    OverloadedError,
    PreconditionError,
    UnavailableError,
)
from shared.streams.consumer import Consumer, End, Entry, parse
from shared.streams.keys import Stream

log = logging.getLogger(__name__)

# Direct calls may have filled the queue; what they hold is done in about the time of a verification.
_OVERLOAD_PAUSE_SECONDS = 0.1


class RewardWorker:
    """Scores one group at a time for each of the tasks that call it."""

    def __init__(self, consumer: Consumer, scorer: Scorer, attempts: int) -> None:
        self._consumer = consumer
        self._scorer = scorer
        self._attempts = attempts

    async def handle(self, entry: Entry) -> None:
        """Hands the group over scored; drops it, counted, where a sample has no verdict after all attempts."""
        try:
            group = parse(pb.TrajectoryGroup, entry)
            failed = await self._score(group)
        except (CorruptDataError, InvalidInputError, NotFoundError) as error:
            await self._consumer.bury(entry, "bad_group", str(error))
            return
        if failed:
            reason = f"verifier_{failed.outcome}"
            if await self._consumer.end(entry, End.dropped(reason)):
                metrics.DROPPED.labels(reason).inc(entry.trajectories)
                log.warning("dropped group %s: %s: %s", entry.group, reason, failed.error)
            return
        group.scored_at.GetCurrentTime()
        await self._consumer.hand_over(entry, Stream.SCORED, group)

    async def _score(self, group: pb.TrajectoryGroup) -> Scored | None:
        """Fills in the scores. Gives the result of a sample that could not be scored, if there is one.

        A refusal is final: the same item would be refused again.
        """
        prompt = group.prompt
        reference = json_format.MessageToDict(prompt.reference)
        missing = list(group.trajectories)
        for _ in range(self._attempts):
            items = [Item(prompt.text, t.completion.text, reference) for t in missing]
            scored = await self._ask(prompt.verifier, items)
            for trajectory, result in zip(missing, scored, strict=True):
                trajectory.score.CopyFrom(encode_score(result))
            failures = [(t, r) for t, r in zip(missing, scored, strict=True) if r.verdict is None]
            if not failures:
                return None
            if refused := [r for _, r in failures if r.outcome is Outcome.REFUSED]:
                return refused[0]
            missing = [t for t, _ in failures]
        return failures[0][1]

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
