"""Has samples scored while others of their group are still being sampled.

Reward keeps the scores until it has the group, and judges then what it has no score of. So a call that fails costs time
and changes nothing else.
"""

import asyncio
import logging
from collections.abc import Iterable, Sequence

from routershift.trajectory import Completion
from routershift.v1 import trajectory_pb2 as pb
from services.generation import metrics
from shared.clients import RewardClient
from shared.errors import RouterShiftError

log = logging.getLogger(__name__)


class EarlyScores:
    """Asks reward for the scores of the samples of one group."""

    def __init__(self, client: RewardClient, prompt: pb.Prompt) -> None:
        """Args: prompt: of the group."""
        self._client = client
        self._prompt = prompt
        self._ended: list[Completion] = []  # not asked for yet
        self._asking: set[asyncio.Task[None]] = set()
        self._sending: asyncio.Handle | None = None
        self._rewards: dict[int, float] = {}  # by sample

    def begin(self, sample: Completion) -> None:
        """Has a sample scored, in one call with others that end in the same turn of the event loop.

        Args:
            sample: with its text.
        """
        self._ended.append(sample)
        if self._sending is None:
            self._sending = asyncio.get_running_loop().call_soon(self._send)

    async def of(self, samples: Iterable[int]) -> list[float] | None:
        """The rewards of samples that were begun, once they are there; None where one could not be scored."""
        self._send()
        if self._asking:
            await asyncio.wait(self._asking)
        wanted = [self._rewards.get(sample) for sample in samples]
        found = [reward for reward in wanted if reward is not None]
        return found if len(found) == len(wanted) else None

    def close(self) -> None:
        """Waits for no answer any more."""
        if self._sending is not None:
            self._sending.cancel()
        for asking in self._asking:
            asking.cancel()

    def _send(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        if self._ended:
            samples, self._ended = self._ended, []
            asking = asyncio.create_task(self._ask(samples))
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)

    async def _ask(self, samples: Sequence[Completion]) -> None:
        try:
            scores = await self._client.score_early(self._prompt, samples)
        except RouterShiftError as error:
            metrics.EARLY_SCORES.labels("failed").inc(len(samples))
            log.info("%d samples are scored with their group: %s", len(samples), error)
            return
        metrics.EARLY_SCORES.labels("answered").inc(len(samples))
        for sample, score in zip(samples, scores, strict=True):
            if score.outcome == pb.OUTCOME_SCORED:
                self._rewards[sample.index] = score.reward
