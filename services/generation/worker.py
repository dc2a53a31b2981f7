"""The stream loop of generation: prompts in, groups of trajectories out."""

import time
from dataclasses import replace

from routershift.v1 import trajectory_pb2 as pb
from services.generation import metrics
from services.generation.engines.base import Engine
from services.generation.requests import Requests
from shared import wire
from shared.errors import CorruptDataError, InvalidInputError
from shared.streams.consumer import Consumer, Entry, parse
from shared.streams.keys import Stream
from shared.trajectory import Completion


class GenerationWorker:
    """Samples one group for each of the tasks that call it."""

    def __init__(self, consumer: Consumer, engine: Engine, requests: Requests) -> None:
        self._consumer = consumer
        self._engine = engine
        self._requests = requests

    async def handle(self, entry: Entry) -> None:
        """Hands over the group; a prompt that the model cannot take goes to the dead letters."""
        began = time.perf_counter()
        try:
            prompt = parse(pb.Prompt, entry)
            tokens = list(prompt.token_ids) or self._requests.tokens(prompt.text)
            completions = await self._engine.generate(tokens, self._requests.sampling(tokens, prompt.sampling))
        except (CorruptDataError, InvalidInputError) as error:
            await self._consumer.bury(entry, "bad_prompt", str(error))
            return
        prompt.token_ids[:] = tokens
        group = pb.TrajectoryGroup(prompt=prompt, trajectories=[self._trajectory(prompt, c) for c in completions])
        group.generated_at.GetCurrentTime()
        if not await self._consumer.hand_over(entry, Stream.ROLLOUTS, group):
            return
        metrics.GROUP_SECONDS.observe(time.perf_counter() - began)
        metrics.ROLLOUTS.inc(len(completions))
        metrics.TOKENS.labels("prompt").inc(len(tokens))
        metrics.TOKENS.labels("response").inc(sum(c.token_ids.size for c in completions))
        metrics.ROUTER_BYTES.inc(sum(c.router_trace.nbytes for c in completions if c.router_trace))

    def _trajectory(self, prompt: pb.Prompt, completion: Completion) -> pb.Trajectory:
        return pb.Trajectory(
            id=pb.TrajectoryId(
                run_id=prompt.run_id, prompt_id=prompt.prompt_id, attempt=prompt.attempt, sample=completion.index
            ),
            completion=wire.encode_completion(replace(completion, text=self._requests.text(completion))),
        )
