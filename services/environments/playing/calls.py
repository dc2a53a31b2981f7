"""Calls of an environment, which may be anybody's code: each has a deadline, and typed failures."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.environments.playing.failures import EpisodeFailedError, Reason
from shared.errors import InvalidInputError
from shared.user_module import raised

T = TypeVar("T")

# In which a call that was cancelled may end. One that goes on after that is left to itself.
_GRACE_SECONDS = 1.0


class _LateError(Exception):
    """A call took longer than its deadline."""


async def ask(environment: str, method: str, call: Callable[[], Awaitable[T]], seconds: float) -> T:
    """What a method of an environment answers.

    Args:
        environment, method: for messages.
        call: calls the method.
        seconds: deadline of the answer.

    Raises:
        InvalidInputError: the environment says that of what it was given.
        EpisodeFailedError: it raised anything else, or did not answer in time.
    """
    try:
        return await _bounded(call, seconds)
    except _LateError:
        raise EpisodeFailedError(
            f"environment {environment}: {method} has not answered within environments.turn_seconds = {seconds:g}",
            Reason.ENVIRONMENT_TIMED_OUT,
        ) from None
    except (EpisodeFailedError, InvalidInputError):
        raise
    except Exception as error:  # whatever the environment raises
        raise EpisodeFailedError(f"environment {environment}: {method} raised {raised(error)}") from error


async def _bounded(call: Callable[[], Awaitable[T]], seconds: float) -> T:
    """As asyncio.wait_for, and also where the call does not end when it is cancelled."""
    task = asyncio.ensure_future(_guarded(call))
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise _LateError
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=_GRACE_SECONDS)
        if task.done() and not task.cancelled():
            task.exception()  # looked at, so that nothing is logged of one that came too late
    if task.cancelled():
        raise RuntimeError("CancelledError: it cancelled itself")
    return task.result()


async def _guarded(call: Callable[[], Awaitable[T]]) -> T:
    """An environment that ends the process raises instead: asyncio lets SystemExit of a task end its loop."""
    try:
        return await call()
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"{type(error).__name__}: an environment may not end its process") from error
