"""Runs verifiers with a deadline and types what comes of it. The one path for RPC and stream."""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from services.reward import metrics
from services.reward.verifiers import VERIFIERS
from services.reward.verifiers.base import Verdict, Verifier
from shared.errors import NotFoundError

log = logging.getLogger(__name__)


class Outcome(StrEnum):
    SCORED = "scored"
    FAILED = "failed"
    TIMED_OUT = "timed_out"


@dataclass(frozen=True, slots=True)
class Item:
    prompt: str
    response: str
    reference: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Scored:
    """`verdict` is there exactly where `outcome` is SCORED: a failure has no reward, not one of 0."""

    outcome: Outcome
    verdict: Verdict | None
    verifier: Verifier
    seconds: float
    error: str = ""


class Scorer:
    """Scores items on worker threads, each with its own deadline."""

    def __init__(self, timeout_seconds: float, threads: int = 4) -> None:
        self._timeout = timeout_seconds
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="verifier")

    async def score(self, verifier: str, items: Sequence[Item]) -> list[Scored]:
        """One result an item, in order.

        Raises:
            NotFoundError: no verifier of that name.
        """
        chosen = VERIFIERS.get(verifier)
        if chosen is None:
            raise NotFoundError(f"verifier is {verifier!r}; known: {', '.join(VERIFIERS)}")
        return list(await asyncio.gather(*(self._one(chosen, item) for item in items)))

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _one(self, verifier: Verifier, item: Item) -> Scored:
        began = time.perf_counter()
        call = asyncio.get_running_loop().run_in_executor(
            self._pool, verifier.verify, item.prompt, item.response, item.reference
        )
        verdict, error = None, ""
        try:
            verdict = await asyncio.wait_for(call, self._timeout)
            outcome = Outcome.SCORED
        except TimeoutError:
            outcome, error = Outcome.TIMED_OUT, f"no verdict within {self._timeout} s"
        except Exception as failure:  # whatever a verifier raises is its outcome, and never ends the service
            outcome, error = Outcome.FAILED, f"{type(failure).__name__}: {failure}"
        seconds = time.perf_counter() - began
        metrics.SCORES.labels(verifier.name, outcome).inc()
        metrics.SECONDS.labels(verifier.name).observe(seconds)
        if verdict is not None:
            metrics.REWARD.labels(verifier.name).observe(verdict.reward)
        else:
            log.warning("verifier %s %s: %s", verifier.name, outcome, error)
        return Scored(outcome, verdict, verifier, seconds, error)
