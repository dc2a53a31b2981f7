"""The stream loop of reward: groups in, scored groups out."""

import logging

from routershift.v1 import trajectory_pb2 as pb
from services.reward import metrics
from services.reward.messages import decode_item, encode_score
from services.reward.scoring import Scorer
from shared.errors import CorruptDataError, NotFoundError
from shared.streams.consumer import Consumer, End, Entry, parse
from shared.streams.keys import Stream

log = logging.getLogger(__name__)


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
        except (CorruptDataError, NotFoundError) as error:
            await self._consumer.bury(entry, "bad_group", str(error))
            return
        if failed:
            reason = f"verifier_{failed}"
            if await self._consumer.end(entry, End.dropped(reason)):
                metrics.DROPPED.labels(reason).inc(entry.trajectories)
                log.warning("dropped group %s: %s after %d attempts", entry.group, reason, self._attempts)
            return
        group.scored_at.GetCurrentTime()
        await self._consumer.hand_over(entry, Stream.SCORED, group)

    async def _score(self, group: pb.TrajectoryGroup) -> str:
        """Fills in the scores. Gives the outcome of a sample that could not be scored, or ''."""
        missing = list(group.trajectories)
        for _ in range(self._attempts):
            items = [decode_item(group.prompt.text, t.completion.text, group.prompt.reference) for t in missing]
            scored = await self._scorer.score(group.prompt.verifier, items)
            for trajectory, result in zip(missing, scored, strict=True):
                trajectory.score.CopyFrom(encode_score(result))
            failures = [(t, r) for t, r in zip(missing, scored, strict=True) if r.verdict is None]
            if not failures:
                return ""
            missing = [t for t, _ in failures]
        return failures[0][1].outcome
