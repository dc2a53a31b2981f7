"""Samples groups with an engine: all of a group at once, or in two waves of which the first may decide it."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from routershift.algorithms.advantages import drop_reason
from routershift.trajectory import Completion, FinishReason
from routershift.v1 import trajectory_pb2 as pb
from services.generation import metrics
from services.generation.early.scores import EarlyScores
from services.generation.early.stop import EarlyStop, goes_on
from services.generation.engines.base import Engine, EngineSampling
from services.generation.requests.validation import Requests
from services.generation.settings import GenerationSettings
from shared.clients import RewardClient

_Ended = Callable[[Completion], None]


@dataclass(frozen=True, slots=True)
class Sampled:
    """What was sampled of a group."""

    completions: list[Completion]  # in order, with their texts; of a stopped group those of its first wave
    again: int = 0  # samples that the engine aborted, begun again
    weight: float = 1.0  # in the loss; 0: stopped

    @property
    def is_aborted(self) -> bool:
        """Whether the engine has aborted one of them too often."""
        return any(_is_aborted(completion) for completion in self.completions)

    def __add__(self, rest: "Sampled") -> "Sampled":
        return replace(self, completions=[*self.completions, *rest.completions], again=self.again + rest.again)


class GroupSampler:
    """Draws sample i of a group from its seed + i, however the samples are put to the engine."""

    def __init__(
        self,
        engine: Engine,
        requests: Requests,
        settings: GenerationSettings,
        reward: RewardClient | None = None,
        early_stop: EarlyStop | None = None,
    ) -> None:
        """
        Args:
            reward: scores samples before their group; None: it is asked for nothing, and scores whole groups.
            early_stop: decides which groups are sampled to their end; None: all are. It needs `reward`.
        """
        self._engine = engine
        self._requests = requests
        self._settings = settings
        self._reward = reward
        self._early_stop = early_stop

    async def sample(self, prompt: pb.Prompt, tokens: list[int], sampling: EngineSampling) -> Sampled:
        """Samples a group. Args: tokens: of the prompt."""
        if self._reward is None:
            return await self._wave(tokens, sampling, range(sampling.n), None)
        scores, stop = EarlyScores(self._reward, prompt), self._early_stop
        try:
            if stop is not None and stop.first < sampling.n:
                return await self._waves(prompt.verifier, tokens, sampling, scores, stop)
            return await self._wave(tokens, sampling, range(sampling.n), self._as_they_end(scores, sampling.n))
        finally:
            scores.close()

    async def _waves(
        self, verifier: str, tokens: list[int], sampling: EngineSampling, scores: EarlyScores, stop: EarlyStop
    ) -> Sampled:
        """Where the first wave is not scored in time the group goes on: that depends on nothing in the rest."""
        first = await self._wave(tokens, sampling, range(stop.first), scores.begin)
        if first.is_aborted:
            return first
        rewards = await scores.of(range(stop.first))
        probability = 1.0 if rewards is None else stop.probability(verifier, rewards)
        if not goes_on(probability, sampling.seed):
            metrics.DECIDED.labels("stopped").inc()
            return replace(first, weight=0.0)
        is_decided = rewards is not None and drop_reason(rewards) is not None
        left = range(stop.first, sampling.n)
        ended = scores.begin if is_decided else self._as_they_end(scores, len(left))
        whole = first + await self._wave(tokens, sampling, left, ended)
        if is_decided and not whole.is_aborted and (rewards := await scores.of(range(sampling.n))) is not None:
            stop.learn(verifier, rewards)
        return replace(whole, weight=1 / probability)

    def _as_they_end(self, scores: EarlyScores, count: int) -> _Ended | None:
        """Has so many samples scored, if settings want it, but for the last to end: that one goes with the group."""
        if not self._settings.early_scores:
            return None

        def ended(completion: Completion) -> None:
            nonlocal count
            count -= 1
            if count:
                scores.begin(completion)

        return ended

    async def _wave(self, prompt: list[int], sampling: EngineSampling, samples: range, ended: _Ended | None) -> Sampled:
        """Some samples of a group; those that the engine aborts, for new weights, again from their first token.

        Args:
            ended: called with each that ends, at once where settings want early scores; None: nobody waits for it.
        """
        if ended is not None and self._settings.early_scores:
            completions = await self._each(prompt, sampling, samples, ended)
        else:
            completions = await self._together(prompt, sampling, samples, ended)
        again = 0
        for _ in range(self._settings.attempts - 1):
            aborted = [completion.index for completion in completions if _is_aborted(completion)]
            if not aborted:
                break
            metrics.SAMPLED_AGAIN.inc(len(aborted))
            again += len(aborted)
            for sampled in await self._each(prompt, sampling, aborted, ended):
                completions[sampled.index - samples.start] = sampled
        return Sampled(completions, again)

    async def _each(
        self, prompt: list[int], sampling: EngineSampling, samples: Sequence[int], ended: _Ended | None
    ) -> list[Completion]:
        """As requests of their own, so that each is there when it ends."""
        parts = (self._together(prompt, sampling, range(i, i + 1), ended) for i in samples)
        return [completion for part in await asyncio.gather(*parts) for completion in part]

    async def _together(
        self, prompt: list[int], sampling: EngineSampling, samples: range, ended: _Ended | None
    ) -> list[Completion]:
        """As one request, drawn as they would be among all."""
        seed = None if sampling.seed is None else sampling.seed + samples.start
        drawn = await self._engine.generate(prompt, replace(sampling, n=len(samples), seed=seed))
        completions = [self._requests.with_text(replace(c, index=samples[c.index])) for c in drawn]
        for completion in completions:
            if ended is not None and not _is_aborted(completion):
                ended(completion)
        return completions


def _is_aborted(completion: Completion) -> bool:
    return completion.finish_reason is FinishReason.ABORTED
