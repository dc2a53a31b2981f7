"""What crosses between the event loop of the torch engine and its thread. The functions run on the loop."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field

from routershift.trajectory import Completion
from services.generation.engines.torch.model import Policy
from shared.errors import RouterShiftError


@dataclass(eq=False, slots=True)
class Request:
    """Where the samples of one request go."""

    whole: bool  # deliver each sample in one piece
    pieces: asyncio.Queue[Completion | RouterShiftError] = field(default_factory=asyncio.Queue)


@dataclass(frozen=True, slots=True)
class Update:
    """New weights, ready to sample."""

    version: int
    policy: Policy
    done: asyncio.Future[float]  # seconds for which nothing was sampled


def deliver(pieces: Iterable[tuple[Request, Completion]]) -> None:
    for request, piece in pieces:
        request.pieces.put_nowait(piece)


def resolve(done: asyncio.Future[float], seconds: float) -> None:
    if not done.cancelled():
        done.set_result(seconds)


def fail(failure: RouterShiftError, requests: Iterable[Request], updates: Iterable[Update]) -> None:
    for request in requests:
        request.pieces.put_nowait(failure)
    for update in updates:
        if not update.done.done():
            update.done.set_exception(failure)
