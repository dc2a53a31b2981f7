"""Episodes that agents play: opened for a group, claimed, found by their ids, and ended."""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence

from routershift.trajectory import FinishReason
from services.environments.gateway import metrics
from services.environments.gateway.episode import AgentEpisode, End, Offer
from services.environments.gateway.errors import ApiError
from services.environments.gateway.model import Texts
from services.environments.playing.answers import LONGEST_NAME, MOST_PARTS
from services.environments.playing.episode import Played
from services.environments.playing.failures import EpisodeFailedError, Reason
from services.environments.playing.limits import EpisodeLimits

_REMEMBERED = 10_000  # episodes that have ended, whose agents are told so


class Episodes:
    """All that are open, and those that wait for an agent."""

    def __init__(self, limits: EpisodeLimits, texts: Texts) -> None:
        self._limits, self._texts = limits, texts
        self._open: dict[str, AgentEpisode] = {}
        self._waiting: deque[AgentEpisode] = deque()
        self._offered = asyncio.Condition()
        self._ends: OrderedDict[str, End] = OrderedDict()

    async def play(self, offer: Offer, samples: int) -> tuple[list[int], list[Played]]:
        """Plays a group of episodes: token ids that all begin with, and the episodes.

        Raises:
            EpisodeFailedError: one of them failed; the others are closed then.
        """
        began = time.perf_counter()
        episodes = [AgentEpisode(offer, sample, self._limits, self._texts) for sample in range(samples)]
        async with self._offered:
            for episode in episodes:
                self._open[episode.id] = episode
                self._waiting.append(episode)
            self._offered.notify_all()
        try:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._ended(episode)) for episode in episodes]
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None
        finally:
            for episode in episodes:
                self._end(episode, End.GIVEN_UP)
        prompt = _common([episode.recording.prompt for episode in episodes])
        if not prompt:
            raise EpisodeFailedError(
                f"environment {offer.environment}: the episodes of a group begin with different tokens; expected one "
                "at least that is the same, as a chat template writes it"
            )
        seconds = time.perf_counter() - began
        return prompt, [
            _played(episode, prompt, *task.result(), seconds) for episode, task in zip(episodes, tasks, strict=True)
        ]

    async def claim(self, environment: str | None, seconds: float) -> AgentEpisode | None:
        """An episode that waits for an agent, the one that has waited longest; None where there is none in time."""
        found: AgentEpisode | None = None

        def there_is() -> bool:
            nonlocal found
            fits = (e for e in self._waiting if environment is None or e.offer.environment == environment)
            found = next(fits, None)
            return found is not None

        try:
            async with asyncio.timeout(seconds), self._offered:
                await self._offered.wait_for(there_is)
                assert found is not None  # noqa: S101 - what was waited for
                self._waiting.remove(found)
                found.claimed.set()
        except TimeoutError:
            return None
        return found

    def find(self, identity: str) -> AgentEpisode:
        """An episode that an agent plays. Raises ApiError: 404 for no such id, 410 for one that has ended."""
        episode = self._open.get(identity)
        if episode is not None and episode.claimed.is_set() and not episode.ended.done():
            return episode
        if end := self._ends.get(identity):
            raise ApiError(f"the episode has ended: {end}", status=410, kind="not_found_error", code=f"episode_{end}")
        metrics.FORGED.inc()
        raise ApiError(
            "there is no such episode; POST /episodes gives one", status=404, kind="not_found_error", code="no_episode"
        )

    def reward(self, identity: str, reward: float | None, parts: Mapping[str, float]) -> None:
        """Ends an episode. Raises ApiError: as `find`, and 409 where it has a reward."""
        if self._ends.get(identity) is End.REWARDED:
            raise ApiError("the episode has its reward; it counts once", status=409, code="episode_rewarded")
        episode = self.find(identity)
        episode.reward(reward, parts)
        self._end(episode, End.REWARDED)

    def close(self, identity: str) -> None:
        """Ends an episode without a reward. Raises ApiError as `find`."""
        episode = self.find(identity)
        episode.close()
        self._end(episode, End.CLOSED)

    async def _ended(self, episode: AgentEpisode) -> tuple[float, Mapping[str, float]]:
        try:
            return await episode.played()
        except EpisodeFailedError as error:
            if error.reason is not Reason.ENVIRONMENT_FAILED:
                self._end(episode, End.TIMED_OUT if episode.claimed.is_set() else End.UNCLAIMED)
            raise

    def _end(self, episode: AgentEpisode, end: End) -> None:
        """Once; later ends of the same episode change nothing."""
        if self._open.pop(episode.id, None) is None:
            return
        if episode in self._waiting:
            self._waiting.remove(episode)
        if not episode.ended.done():
            episode.ended.cancel()
        self._ends[episode.id] = end
        if len(self._ends) > _REMEMBERED:
            self._ends.popitem(last=False)
        metrics.EPISODES.labels(end).inc()
        metrics.BRANCHES.inc(episode.recording.branches)
        metrics.TURNS.labels("trained" if end is End.REWARDED else "failed").inc(
            episode.recording.turns - episode.recording.left_out
        )
        metrics.TURNS.labels("left_out").inc(episode.recording.left_out)


def _played(
    episode: AgentEpisode, prompt: Sequence[int], reward: float, parts: Mapping[str, float], seconds: float
) -> Played:
    cut = FinishReason.LENGTH if episode.is_cut else None
    return Played(episode.recording.trajectory(prompt, episode.sample, cut), reward, parts, seconds)


def _common(prompts: Sequence[Sequence[int]]) -> list[int]:
    """What all begin with."""
    length = next(
        (i for i, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1), min(map(len, prompts))
    )
    return list(prompts[0][:length])


def checked_parts(parts: Mapping[str, float]) -> Mapping[str, float]:
    """Raises ApiError for too many of them, or names that are too long."""
    if len(parts) > MOST_PARTS or any(not 0 < len(name) <= LONGEST_NAME for name in parts):
        raise ApiError(
            f"parts has {len(parts)} entries; allowed: {MOST_PARTS}, with names of 1 to {LONGEST_NAME} characters",
            param="parts",
        )
    return parts
