"""Samples whose tokens say where they stand."""

import numpy as np

from routershift.trajectory import Completion, FinishReason, Trajectory, VersionSpan
from services.learner.data.batch import Sample


def sample(prompt: int, response: int, spans: tuple[VersionSpan, ...] | None = None) -> Sample:
    """Prompt tokens 100, 101, ...; response tokens 200, 201, ...; log-probs are -0.1, -0.2, ...."""
    completion = Completion(
        index=0,
        token_ids=np.arange(200, 200 + response, dtype=np.int32),
        logprobs=np.linspace(-0.1, -0.1 * response, response, dtype=np.float32),
        versions=spans or (VersionSpan(0, response),),
        finish_reason=FinishReason.STOP,
        router_trace=None,
    )
    return Sample(np.arange(100, 100 + prompt, dtype=np.int32), Trajectory(completion), 1.0)
