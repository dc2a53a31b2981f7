"""Episodes that agents play: opened for a group, claimed, found by their ids, and ended."""

import asyncio
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence

from routershift.v1 import environment_pb2 as env
from services.environments.gateway import metrics
from services.environments.gateway.episode import AgentEpisode
from services.environments.gateway.errors import ApiError
from services.environments.gateway.model import Texts
from services.environments.gateway.offer import End, Given, Offer
from services.environments.gateway.records import ENDS, Records, state, told
from services.environments.gateway.settings import RecordsSettings
from services.environments.playing.episode import Played
from services.environments.playing.failures import EpisodeFailedError, Reason
from services.environments.playing.limits import EpisodeLimits

WAIT_SECONDS, MAX_WAIT_SECONDS = 20.0, 600.0  # for an episode to claim
_REMEMBERED = 10_000  # episodes that have ended, whose agents are told so


class Episodes:
    """All that are open, those that wait for an agent, and the records of those that callers opened for themselves."""

    def __init__(self, limits: EpisodeLimits, texts: Texts, records: RecordsSettings) -> None:
        self._limits, self._texts, self._settings = limits, texts, records
        self._open: dict[str, AgentEpisode] = {}
        self._own: dict[str, asyncio.Task[None]] = {}
        self._records = Records(records)
        self._waiting: deque[AgentEpisode] = deque()
        self._offered = asyncio.Condition()
        self._ends: OrderedDict[str, tuple[End, bool]] = OrderedDict()
        self._agents: dict[str, bool] = {}  # those whose process runs, and whether it has rewarded an episode

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
            _played(episode, prompt, task.result(), seconds) for episode, task in zip(episodes, tasks, strict=True)
        ]

    async def claim(self, environment: str | None, seconds: float, agent: str | None = None) -> AgentEpisode | None:
        """An episode that waits for an agent, the one that has waited longest; None where there is none in time.

        Args:
            agent: that claims it, as `agent_started` named it; None for one that is from elsewhere.

        Raises:
            ApiError: there is no such agent, or its process has ended.
        """
        found: AgentEpisode | None = None

        def there_is() -> bool:
            nonlocal found
            if agent is not None and agent not in self._agents:
                raise ApiError(
                    "no agent of this name runs; take the address of ROUTERSHIFT_GATEWAY",
                    status=404,
                    kind="not_found_error",
                    code="no_agent",
                )
            fits = (e for e in self._waiting if environment is None or e.offer.environment == environment)
            found = next(fits, None)
            return found is not None

        try:
            async with asyncio.timeout(seconds), self._offered:
                await self._offered.wait_for(there_is)
                assert found is not None  # noqa: S101 - what was waited for
                self._waiting.remove(found)
                found.agent = agent
                found.claimed.set()
        except TimeoutError:
            return None
        return found

    def open(self, offer: Offer) -> AgentEpisode:
        """An episode of no group, that whoever opens it plays. It is recorded, and never trained on.

        Raises:
            ApiError: 429 where too many are open, or what they and the records take leaves no room.
        """
        most = self._settings.max_open
        if len(self._own) >= most:
            raise _no_room(f"{most} episodes are open; environments.gateway.records.max_open = {most}: end some")
        episode = AgentEpisode(offer, 0, self._limits, self._texts, self._admit)
        episode.size = told(episode, "").ByteSize()
        self._admit(episode.size)
        episode.claimed.set()
        self._open[episode.id] = episode
        self._own[episode.id] = asyncio.create_task(self._watch(episode))
        metrics.OWN.set(len(self._own))
        return episode

    def get(self, identity: str) -> env.GetEpisodeResponse:
        """How far an episode is, and the record of one that was opened and has ended.

        Raises:
            ApiError: 404 for no such id, 410 for a record that is not kept any more.
        """
        if (record := self._records.find(identity)) is not None:
            return record
        ended = self._ends.get(identity)
        if ended is None:
            return state(self.find(identity))
        end, is_trained = ended
        if not is_trained:
            raise ApiError(
                "the record of the episode is not kept any more; see environments.gateway.records",
                status=410,
                kind="not_found_error",
                code="record_removed",
            )
        return env.GetEpisodeResponse(episode=env.AgentEpisode(episode_id=identity), end=ENDS[end])

    def close_all(self) -> None:
        """Ends those that callers opened, as the service does."""
        for identity in list(self._own):
            self._end(self._open[identity], End.GIVEN_UP)

    def find(self, identity: str) -> AgentEpisode:
        """An episode that an agent plays. Raises ApiError: 404 for no such id, 410 for one that has ended."""
        episode = self._open.get(identity)
        if episode is not None and episode.claimed.is_set() and not episode.ended.done():
            return episode
        if ended := self._ends.get(identity):
            end, _ = ended
            raise ApiError(f"the episode has ended: {end}", status=410, kind="not_found_error", code=f"episode_{end}")
        metrics.FORGED.inc()
        raise ApiError(
            "there is no such episode; POST /episodes gives one", status=404, kind="not_found_error", code="no_episode"
        )

    def reward_turns(self, identity: str, rewards: Mapping[int, float]) -> None:
        """Rewards turns of an episode, which stays open. Raises ApiError: as `reward`."""
        self._unrewarded(identity).reward_turns(rewards)

    def reward(
        self, identity: str, reward: float | None, parts: Mapping[str, float], turns: Mapping[int, float]
    ) -> float | None:
        """Ends an episode; gives its reward. The arguments are those of `AgentEpisode.reward`.

        Raises:
            ApiError: as `find` and `AgentEpisode.reward`; 409 where it has a reward.
        """
        episode = self._unrewarded(identity)
        given = episode.reward(reward, parts, turns)
        self._end(episode, End.REWARDED)
        if episode.agent in self._agents:
            self._agents[episode.agent] = True
        return given.reward

    def close(self, identity: str) -> None:
        """Ends an episode without a reward. Raises ApiError as `find`."""
        episode = self.find(identity)
        episode.fail("closed an episode without a reward", Reason.ENVIRONMENT_FAILED)
        self._end(episode, End.CLOSED)

    def agent_started(self) -> str:
        """A name for a process of this machine, by which it claims episodes."""
        agent = secrets.token_urlsafe(24)
        self._agents[agent] = False
        return agent

    def agent_ended(self, agent: str, how: str) -> bool:
        """Ends the episodes that its process has claimed, without a reward: nobody plays on.

        Args:
            how: it ended, as in "code 1".

        Returns:
            Whether it has rewarded an episode.
        """
        has_rewarded = self._agents.pop(agent)
        for episode in [episode for episode in self._open.values() if episode.agent == agent]:
            episode.fail(f"ended with {how} before its episode did", Reason.AGENT_ENDED)
            self._end(episode, End.AGENT_ENDED)
        return has_rewarded

    def _unrewarded(self, identity: str) -> AgentEpisode:
        end, _ = self._ends.get(identity, (None, True))
        if end is End.REWARDED:
            raise ApiError("the episode has its reward; it counts once", status=409, code="episode_rewarded")
        return self.find(identity)

    def _admit(self, size: int = 0) -> None:
        """Raises ApiError where the episodes that callers opened have no room for so many bytes more."""
        if not self._records.make_room(self._own_bytes + size):
            raise _no_room(
                f"open episodes take more than environments.gateway.records.max_mb = {self._settings.max_mb} MiB: end "
                "some"
            )

    @property
    def _own_bytes(self) -> int:
        return sum(self._open[identity].size for identity in self._own)

    async def _watch(self, episode: AgentEpisode) -> None:
        """Ends one that a caller opened, where that is late."""
        try:
            await episode.played()
        except EpisodeFailedError:
            self._end(episode, End.TIMED_OUT)

    async def _ended(self, episode: AgentEpisode) -> Given:
        try:
            return await episode.played()
        except EpisodeFailedError:
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
        self._ends[episode.id] = end, episode.offer.is_trained
        if len(self._ends) > _REMEMBERED:
            self._ends.popitem(last=False)
        if not episode.offer.is_trained:
            self._keep(episode, end)
            return
        metrics.EPISODES.labels(end).inc()
        metrics.BRANCHES.inc(episode.recording.branches)
        metrics.TURNS.labels("trained" if end is End.REWARDED else "failed").inc(
            episode.recording.turns - episode.recording.left_out
        )
        metrics.TURNS.labels("left_out").inc(episode.recording.left_out)

    def _keep(self, episode: AgentEpisode, end: End) -> None:
        """Makes a record of one that a caller opened."""
        self._own.pop(episode.id).cancel()
        self._records.add(episode, end)
        self._records.make_room(self._own_bytes)
        metrics.OWN.set(len(self._own))
        metrics.OWN_ENDS.labels(end).inc()
        metrics.BRANCHES.inc(episode.recording.branches)
        metrics.TURNS.labels("recorded").inc(episode.recording.turns)


def _no_room(message: str) -> ApiError:
    return ApiError(message, status=429, kind="rate_limit_error", code="rate_limit_exceeded", retry_after=1.0)


def _played(episode: AgentEpisode, prompt: Sequence[int], given: Given, seconds: float) -> Played:
    trajectory = episode.recording.trajectory(prompt, episode.sample, episode.cut)
    return Played(trajectory, given.reward or 0.0, given.parts, seconds)


def _common(prompts: Sequence[Sequence[int]]) -> list[int]:
    """What all begin with."""
    length = next(
        (i for i, tokens in enumerate(zip(*prompts, strict=False)) if len(set(tokens)) > 1), min(map(len, prompts))
    )
    return list(prompts[0][:length])
