"""The stream loop of generation: prompts in, groups of trajectories out."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from routershift import wire
from routershift.trajectory import Completion, FinishReason, Trajectory
from routershift.v1 import trajectory_pb2 as pb
from services.generation import metrics
from services.generation.admission import AdmissionControl
from services.generation.early.scores import EarlyScores
from services.generation.engines.base import Engine, EngineSampling
from services.generation.requests.validation import Requests
from services.generation.routes import as_exported
from services.generation.settings import GenerationSettings
from shared.clients import RewardClient
from shared.errors import CorruptDataError, InvalidInputError
from shared.streams.consumer import Consumer, End, Entry, parse
from shared.streams.keys import Stream
from shared.tracing import spans
from shared.tracing.kinds import GENERATE, Generating

log = logging.getLogger(__name__)

_ABORTED = "aborted"


class GenerationWorker:
    """Samples one group for each of the tasks that call it."""

    def __init__(
        self,
        consumer: Consumer,
        engine: Engine,
        requests: Requests,
        settings: GenerationSettings,
        samples: int,
        reward: RewardClient | None = None,
    ) -> None:
        """
        Args:
            samples: in a group of this run.
            reward: scores samples as they end; None: it is asked for nothing, and scores whole groups.
        """
        self._consumer = consumer
        self._engine = engine
        self._requests = requests
        self._settings = settings
        self._reward = reward
        self._admission = AdmissionControl(settings.max_num_seqs, samples, settings.kv_cache_high_water)
        self._sampling = 0

    def room(self) -> int:
        """How many more prompts keep the engine busy; see `Consumer.each`."""
        return self._admission.room_for_groups(self._engine.load, self._consumer.held, self._sampling)

    async def handle(self, entry: Entry) -> None:
        """Hands over the group; a prompt that the model cannot take goes to the dead letters.

        A group with a sample that the engine has aborted too often is dropped, counted.
        """
        began = time.perf_counter()
        try:
            with spans.span(GENERATE, entry.traceparent) as span:
                prompt = parse(pb.Prompt, entry)
                tokens = list(prompt.token_ids) or await self._requests.tokens(prompt.text)
                sampling = self._requests.sampling(tokens, prompt.sampling)
                completions = await self._sample(prompt, tokens, sampling, span)
                _describe(span, tokens, completions)
        except (CorruptDataError, InvalidInputError) as error:
            await self._consumer.bury(entry, "bad_prompt", str(error))
            return
        if any(c.finish_reason is FinishReason.ABORTED for c in completions):
            if await self._consumer.end(entry, End.dropped(_ABORTED)):
                metrics.DROPPED.labels(_ABORTED).inc(entry.trajectories)
                log.warning("dropped group %s: aborted %d times", entry.group, self._settings.attempts)
            return
        prompt.token_ids[:] = tokens
        group = pb.TrajectoryGroup(prompt=prompt, trajectories=[self._trajectory(prompt, c) for c in completions])
        group.generated_at.GetCurrentTime()
        if not await self._consumer.hand_over(entry, Stream.ROLLOUTS, group):
            return
        metrics.GROUP_SECONDS.observe(time.perf_counter() - began)
        metrics.ROLLOUTS.inc(len(completions))
        metrics.count_tokens(tokens, completions)
        metrics.count_router_bytes(trajectory.completion for trajectory in group.trajectories)

    async def _sample(
        self, prompt: pb.Prompt, tokens: list[int], sampling: EngineSampling, span: spans.Span[Generating]
    ) -> list[Completion]:
        """All samples of a group."""
        self._sampling += 1
        early = EarlyScores(self._reward, prompt) if self._reward else None
        try:
            return await self._completions(tokens, sampling, early, span)
        finally:
            self._sampling -= 1
            if early:
                early.close()

    async def _completions(
        self, prompt: list[int], sampling: EngineSampling, early: EarlyScores | None, span: spans.Span[Generating]
    ) -> list[Completion]:
        """The samples; those that the engine aborts, for new weights, again from their first token."""
        left = sampling.n

        def ended(completion: Completion) -> None:
            nonlocal left
            left -= 1
            if early and left:  # the last one goes with the group
                early.begin(completion)

        if early:
            completions = await self._each(prompt, sampling, range(sampling.n), ended)
        else:
            completions = [self._requests.with_text(c) for c in await self._engine.generate(prompt, sampling)]
        again = 0
        for _ in range(self._settings.attempts - 1):
            aborted = [c.index for c in completions if c.finish_reason is FinishReason.ABORTED]
            if not aborted:
                break
            metrics.SAMPLED_AGAIN.inc(len(aborted))
            again += len(aborted)
            for sampled in await self._each(prompt, sampling, aborted, ended):
                completions[sampled.index] = sampled
        span.set({"sampled_again": again})
        return completions

    async def _each(
        self,
        prompt: list[int],
        sampling: EngineSampling,
        samples: Sequence[int],
        ended: Callable[[Completion], None],
    ) -> list[Completion]:
        """Samples of the group as requests of their own, drawn as they would be among the others.

        Args:
            ended: called with each when it ends, unless it is aborted.
        """

        async def alone(index: int) -> Completion:
            seed = None if sampling.seed is None else sampling.seed + index
            (drawn,) = await self._engine.generate(prompt, replace(sampling, n=1, seed=seed))
            completion = self._requests.with_text(replace(drawn, index=index))
            if completion.finish_reason is not FinishReason.ABORTED:
                ended(completion)
            return completion

        return list(await asyncio.gather(*map(alone, samples)))

    def _trajectory(self, prompt: pb.Prompt, completion: Completion) -> pb.Trajectory:
        name = pb.TrajectoryId(
            run_id=prompt.run_id, prompt_id=prompt.prompt_id, attempt=prompt.attempt, sample=completion.index
        )
        return wire.encode_trajectory(name, Trajectory(as_exported(completion, self._settings)))


def _describe(span: spans.Span[Generating], prompt: list[int], completions: list[Completion]) -> None:
    """What may explain how long it took: the longest response, and whether new weights came meanwhile."""
    lengths = [completion.token_ids.size for completion in completions]
    span.set(
        {
            "samples": len(completions),
            "prompt_tokens": len(prompt),
            "response_tokens": sum(lengths),
            "longest_tokens": max(lengths, default=0),
        }
    )
    if versions := [part.version for completion in completions for part in completion.versions]:
        span.set({"oldest_version": min(versions), "newest_version": max(versions)})
