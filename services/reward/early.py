"""Scores that are asked for while the rest of their group is still being sampled.

They stay in this process, by what was judged, until their group comes over its stream, which asks for each once. So no
other service can bring a reward along, and one that is lost, or is at another replica, is judged again.
"""

import asyncio
import hashlib
import json
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence

from services.reward import metrics
from services.reward.outcomes import Scored
from services.reward.scoring import Scorer
from services.reward.verifiers.base import Item

_Judging = tuple["asyncio.Task[list[Scored]]", int]  # the task, and the place of the item in what it gives


class EarlyScores:
    """Scores items before their group, and gives the group what it has of them."""

    def __init__(self, scorer: Scorer, most: int) -> None:
        """Args: most: scores that are kept; of more, the oldest are forgotten."""
        self._scorer = scorer
        self._most = most
        self._judging: OrderedDict[bytes, deque[_Judging]] = OrderedDict()  # by what is judged, the oldest first
        self._kept = 0

    async def score(
        self, verifier: str, items: Sequence[Item], *, admitted: Callable[[], Awaitable[None]] | None = None
    ) -> list[Scored]:
        """As `Scorer.score`. A caller that is cancelled leaves it to go on: the group will want it."""
        task = asyncio.create_task(self._scorer.score(verifier, items, admitted=admitted))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to hear of it
        for place, item in enumerate(items):
            self._judging.setdefault(_digest(verifier, item), deque()).append((task, place))
        self._kept += len(items)
        while self._kept > self._most:
            self._take(next(iter(self._judging)))
            metrics.EARLY.labels("forgotten").inc()
        return await asyncio.shield(task)

    async def take(self, verifier: str, items: Sequence[Item]) -> dict[int, Scored]:
        """The verdicts on these items, by place; waits for those that are being judged. Each is given out once."""
        if not self._kept:
            return {}
        taken = {place: self._take(_digest(verifier, item)) for place, item in enumerate(items)}
        judging = {place: found for place, found in taken.items() if found is not None}
        if judging:
            await asyncio.wait({task for task, _ in judging.values()})
        found = {
            place: task.result()[index]
            for place, (task, index) in judging.items()
            if not task.cancelled() and task.exception() is None
        }
        scored = {place: each for place, each in found.items() if each.verdict is not None}
        metrics.EARLY.labels("used").inc(len(scored))
        metrics.EARLY.labels("failed").inc(len(judging) - len(scored))
        return scored

    def _take(self, digest: bytes) -> _Judging | None:
        waiting = self._judging.get(digest)
        if waiting is None:
            return None
        judging = waiting.popleft()
        self._kept -= 1
        if not waiting:
            del self._judging[digest]
        return judging


def _digest(verifier: str, item: Item) -> bytes:
    """The same for an item of a call and for that of a group."""
    judged = json.dumps([verifier, *item], sort_keys=True, default=dict)
    return hashlib.blake2b(judged.encode(), digest_size=16).digest()
