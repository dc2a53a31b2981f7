"""The stream loop of generation: prompts in, groups of trajectories out."""

import logging
import time

from routershift import wire
from routershift.trajectory import Completion, Trajectory
from routershift.v1 import trajectory_pb2 as pb
from services.generation import metrics
from services.generation.admission import AdmissionControl
from services.generation.early.stop import EarlyStop
from services.generation.engines.base import Engine, EngineSampling
from services.generation.requests.validation import Requests
from services.generation.routes import as_exported
from services.generation.sampling import GroupSampler, Sampled
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
        early_stop: EarlyStop | None = None,
    ) -> None:
        """Args: samples: in a group of this run. reward, early_stop: as of `GroupSampler`."""
        self._consumer = consumer
        self._engine = engine
        self._requests = requests
        self._settings = settings
        self._sampler = GroupSampler(engine, requests, settings, reward, early_stop)
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
                sampled = await self._sample(prompt, tokens, sampling)
                _describe(span, tokens, sampled)
        except (CorruptDataError, InvalidInputError) as error:
            await self._consumer.bury(entry, "bad_prompt", str(error))
            return
        if sampled.is_aborted:
            if await self._consumer.end(entry, End.dropped(_ABORTED)):
                metrics.DROPPED.labels(_ABORTED).inc(entry.trajectories)
                log.warning("dropped group %s: aborted %d times", entry.group, self._settings.attempts)
            return
        prompt.token_ids[:] = tokens
        completions = sampled.completions
        group = pb.TrajectoryGroup(prompt=prompt, trajectories=[self._trajectory(prompt, c) for c in completions])
        if sampled.weight != 1:
            group.weight = sampled.weight
        group.generated_at.GetCurrentTime()
        if not await self._consumer.hand_over(entry, Stream.ROLLOUTS, group):
            return
        metrics.GROUP_SECONDS.observe(time.perf_counter() - began)
        metrics.ROLLOUTS.inc(len(completions))
        metrics.count_tokens(tokens, completions)
        metrics.count_router_bytes(trajectory.completion for trajectory in group.trajectories)

    async def _sample(self, prompt: pb.Prompt, tokens: list[int], sampling: EngineSampling) -> Sampled:
        self._sampling += 1
        try:
            return await self._sampler.sample(prompt, tokens, sampling)
        finally:
            self._sampling -= 1

    def _trajectory(self, prompt: pb.Prompt, completion: Completion) -> pb.Trajectory:
        name = pb.TrajectoryId(
            run_id=prompt.run_id, prompt_id=prompt.prompt_id, attempt=prompt.attempt, sample=completion.index
        )
        return wire.encode_trajectory(name, Trajectory(as_exported(completion, self._settings)))


def _describe(span: spans.Span[Generating], prompt: list[int], sampled: Sampled) -> None:
    """What may explain how long it took: the longest response, and whether new weights came meanwhile."""
    completions = sampled.completions
    lengths = [completion.token_ids.size for completion in completions]
    span.set(
        {
            "sampled_again": sampled.again,
            "samples": len(completions),
            "prompt_tokens": len(prompt),
            "response_tokens": sum(lengths),
            "longest_tokens": max(lengths, default=0),
        }
    )
    if sampled.weight != 1:
        span.set({"weight": sampled.weight})
    if versions := [part.version for completion in completions for part in completion.versions]:
        span.set({"oldest_version": min(versions), "newest_version": max(versions)})
