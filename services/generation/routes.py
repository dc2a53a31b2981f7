"""What of a response's routes leaves the service, and in which form."""

from dataclasses import replace

from routershift.trajectory import Completion, ScoreDtype
from services.generation.settings import GenerationSettings


def as_exported(completion: Completion, settings: GenerationSettings) -> Completion:
    """The completion with the scores of its routes as `router_scores` says."""
    trace = completion.router_trace
    if trace is None or settings.router_scores is ScoreDtype.FLOAT16:
        return completion
    return replace(completion, router_trace=trace.coded())
