"""Episodes of environments that run here, for callers who play them with a policy of their own."""

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from services.environments import metrics
from services.environments.base import Action, Environment, Observation, Step
from services.environments.playing.answers import checked_observation, checked_step
from services.environments.playing.calls import ask
from services.environments.playing.failures import EpisodeFailedError
from services.environments.registry import Configured, find
from services.environments.settings import EnvironmentsSettings
from shared.errors import InvalidInputError, NotFoundError, OverloadedError, PreconditionError

log = logging.getLogger(__name__)

_LOOKS = 10  # for idle episodes, in the time after which one is


@dataclass(slots=True)
class _Hosted:
    """One open episode. `lock` has who calls it now."""

    name: str
    environment: Environment
    used: float = field(default_factory=time.monotonic)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    turn: int = 0  # the next
    last: tuple[Action, Step] | None = None
    is_open: bool = True


class HostedEpisodes:
    """Episodes by ids that nobody can guess. Who has the id of one may step it."""

    def __init__(self, environments: Mapping[str, Configured], settings: EnvironmentsSettings, vocab_size: int) -> None:
        """Args: environments: by name; vocab_size: of the model, which bounds the token ids of observations."""
        self._environments = environments
        self._settings = settings
        self._vocab_size = vocab_size
        self._episodes: dict[str, _Hosted] = {}
        self._beginning = 0

    async def reset(self, name: str, task: Mapping[str, Any], seed: int) -> tuple[str, Observation | None]:
        """Begins an episode; gives its id, and what is read after the prompt.

        Raises:
            NotFoundError: no such environment.
            InvalidInputError: the task is none of it.
            OverloadedError: too many are open.
            EpisodeFailedError: the environment failed.
        """
        configured = find(self._environments, name)
        most = self._settings.hosting.max_episodes
        if len(self._episodes) + self._beginning >= most:
            raise OverloadedError(
                f"{most} episodes are open; environments.hosting.max_episodes = {most}: close some, or raise it"
            )
        self._beginning += 1
        try:
            hosted = _Hosted(name, configured.make())
            try:
                answer = await self._ask(hosted, "reset", lambda: hosted.environment.reset(task, seed))
                observation = self._checked(name, answer)
            except BaseException:
                await self._end(hosted, "failed")
                raise
        finally:
            self._beginning -= 1
        episode_id = secrets.token_urlsafe(24)
        self._episodes[episode_id] = hosted
        metrics.HOSTED.set(len(self._episodes))
        return episode_id, observation

    async def step(self, episode_id: str, turn: int, action: Action) -> Step:
        """What the environment answers. The last step, asked for again, is answered again.

        Raises:
            NotFoundError: no such episode, or no more.
            PreconditionError: another turn is due, or none.
            EpisodeFailedError: the environment failed, which ends the episode.
        """
        hosted = self._find(episode_id)
        async with hosted.lock:
            if not hosted.is_open:  # ended while this call waited
                raise _unknown(episode_id)
            hosted.used = time.monotonic()
            if hosted.last is not None and turn == hosted.turn - 1:
                done, answer = hosted.last
                if done != action:
                    raise PreconditionError(f"turn {turn} was done with another action; the next is {hosted.turn}")
                return answer
            if hosted.last is not None and (hosted.last[1].is_done or hosted.last[1].observation is None):
                raise PreconditionError(f"the episode is done with turn {hosted.turn - 1}; reset begins another")
            if turn != hosted.turn:
                raise PreconditionError(f"turn is {turn}; expected {hosted.turn}, the next of this episode")
            try:
                step = await self._step(hosted, action)
            except BaseException:  # a caller that goes away has cut the environment off in the middle of its turn
                self._forget(episode_id)
                await self._end(hosted, "failed")
                raise
            hosted.turn, hosted.last, hosted.used = turn + 1, (action, step), time.monotonic()
            return step

    async def close(self, episode_id: str, reason: str = "closed") -> None:
        """Ends it, once a step in progress is answered. One that is not there is no error."""
        if (hosted := self._forget(episode_id)) is not None:
            async with hosted.lock:
                if hosted.is_open:
                    await self._end(hosted, reason)

    async def watch(self) -> None:
        """Closes those whose callers are silent; run it as a task."""
        limit = self._settings.hosting.idle_seconds
        while True:
            await asyncio.sleep(limit / _LOOKS)
            before = time.monotonic() - limit
            idle = [i for i, hosted in self._episodes.items() if hosted.used < before and not hosted.lock.locked()]
            for episode_id in idle:
                log.info("an episode of %s was idle for %g s and is closed", self._episodes[episode_id].name, limit)
                await self.close(episode_id, "idle")

    async def close_all(self) -> None:
        """Ends all, as the service does."""
        await asyncio.gather(*(self.close(episode_id, "drained") for episode_id in list(self._episodes)))

    async def _step(self, hosted: _Hosted, action: Action) -> Step:
        try:
            answer = await self._ask(hosted, "step", lambda: hosted.environment.step(action))
            return checked_step(answer, self._settings.observation_tokens, self._vocab_size)
        except InvalidInputError as error:  # no action is bad input: the environment has to answer it
            raise EpisodeFailedError(f"environment {hosted.name}: step: {error}") from error

    def _checked(self, name: str, answer: object) -> Observation | None:
        try:
            return checked_observation(answer, self._settings.observation_tokens, self._vocab_size)
        except InvalidInputError as error:
            raise EpisodeFailedError(f"environment {name}: reset: {error}") from error

    async def _ask(self, hosted: _Hosted, method: str, call: Any) -> Any:
        return await ask(hosted.name, method, call, self._settings.turn_seconds)

    def _find(self, episode_id: str) -> _Hosted:
        if (hosted := self._episodes.get(episode_id)) is None:
            raise _unknown(episode_id)
        return hosted

    def _forget(self, episode_id: str) -> _Hosted | None:
        hosted = self._episodes.pop(episode_id, None)
        metrics.HOSTED.set(len(self._episodes))
        return hosted

    async def _end(self, hosted: _Hosted, reason: str) -> None:
        hosted.is_open = False
        metrics.HOSTED_ENDS.labels(reason).inc()
        with suppress(InvalidInputError):
            try:
                await self._ask(hosted, "close", hosted.environment.close)
            except EpisodeFailedError as error:
                log.warning("%s", error)


def _unknown(episode_id: str) -> NotFoundError:
    return NotFoundError(f"episode_id is {episode_id[:64]!r}: no such episode is open; it was closed, idle or failed")
