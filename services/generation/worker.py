"""The stream loop of generation: prompts in, groups of trajectories out."""

import asyncio
import logging
import time
from dataclasses import replace

from routershift import wire
from routershift.trajectory import Completion, FinishReason, Trajectory
from routershift.v1 import trajectory_pb2 as pb
from services.generation import metrics
from services.generation.admission import AdmissionControl
from services.generation.engines.base import Engine, EngineSampling
from services.generation.requests.validation import Requests
from services.generation.settings import GenerationSettings
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
        self, consumer: Consumer, engine: Engine, requests: Requests, settings: GenerationSettings, samples: int
    ) -> None:
        """Args: samples: in a group of this run."""
        self._consumer = consumer
        self._engine = engine
        self._requests = requests
        self._settings = settings
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
                completions = await self._sample(tokens, self._requests.sampling(tokens, prompt.sampling), span)
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
        self, prompt: list[int], sampling: EngineSampling, span: spans.Span[Generating]
    ) -> list[Completion]:
        """All samples; those that the engine aborts, for new weights, again from their first token."""
        self._sampling += 1
        try:
            completions = await self._engine.generate(prompt, sampling)
            again = 0
            for _ in range(self._settings.attempts - 1):
                aborted = [c.index for c in completions if c.finish_reason is FinishReason.ABORTED]
                if not aborted:
                    break
                metrics.SAMPLED_AGAIN.inc(len(aborted))
                again += len(aborted)
                for sampled in await asyncio.gather(*(self._alone(prompt, sampling, i) for i in aborted)):
                    completions[sampled.index] = sampled
            span.set({"sampled_again": again})
            return completions
        finally:
            self._sampling -= 1

    async def _alone(self, prompt: list[int], sampling: EngineSampling, index: int) -> Completion:
        """One sample of the group, drawn as it would be among the others."""
        seed = None if sampling.seed is None else sampling.seed + index
        (completion,) = await self._engine.generate(prompt, replace(sampling, n=1, seed=seed))
        return replace(completion, index=index)

    def _trajectory(self, prompt: pb.Prompt, completion: Completion) -> pb.Trajectory:
        name = pb.TrajectoryId(
            run_id=prompt.run_id, prompt_id=prompt.prompt_id, attempt=prompt.attempt, sample=completion.index
        )
        trajectory = Trajectory(self._requests.with_text(completion))
        return wire.encode_trajectory(name, trajectory, self._settings.router_scores)


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
