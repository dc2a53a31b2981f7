"""What of a response's routes leaves the service, and in which form."""

import zlib
from dataclasses import replace

from routershift.routing.layer_subset import NO_LAYER
from routershift.routing.layout import RouterLayout
from routershift.trajectory import Completion, ScoreDtype
from services.generation.settings import GenerationSettings
from shared.errors import InvalidInputError


def as_exported(completion: Completion, settings: GenerationSettings) -> Completion:
    """The completion with as many layers in its routes as `router_layers` says, and scores as `router_scores` does.

    Which layers follows from the response, so that the same one has the same.
    """
    trace = completion.router_trace
    if trace is None:
        return completion
    if settings.router_layers is not None:
        trace = trace.thinned(settings.router_layers, seed=zlib.crc32(completion.token_ids.tobytes()))
    if settings.router_scores is ScoreDtype.UINT8:
        trace = trace.coded()
    return replace(completion, router_trace=trace)


def check_layers(settings: GenerationSettings, layout: RouterLayout | None) -> None:
    """Raises InvalidInputError where `router_layers` asks for more layers than the model routes in."""
    layers = len(layout.layer_ids) if layout else 0
    if settings.router_layers is not None and not settings.router_layers <= layers < NO_LAYER:
        raise InvalidInputError(
            f"generation.router_layers is {settings.router_layers}, and the model has {layers} layers with a router; "
            f"expected at most {min(layers, NO_LAYER - 1)}, or leave it out"
        )
