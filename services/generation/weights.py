"""New weights while serving: verified, never backwards, the newest only, and the old ones stay if anything fails."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from routershift.v1 import trajectory_pb2 as pb
from services.generation import metrics
from services.generation.engines.base import Engine
from shared import weights
from shared.errors import CorruptDataError, InvalidInputError, NotFoundError, PreconditionError

log = logging.getLogger(__name__)


class WeightsLoader:
    """The one way to an engine's weights, for the stream of announcements and for the RPC alike."""

    def __init__(self, engine: Engine, root: Path) -> None:
        self._engine = engine
        self._root = root
        self._lock = asyncio.Lock()

    @property
    def busy(self) -> bool:
        """While a version is being verified or taken."""
        return self._lock.locked()

    async def load(self, manifest: pb.WeightsManifest) -> float:
        """Seconds that it took to verify and take this version.

        Raises:
            PreconditionError: the version is not above the one that serves.
            NotFoundError, CorruptDataError: a file is missing or is not what the manifest says.
            InvalidInputError: weights of another architecture.
        """
        async with self._lock:
            if manifest.version <= self._engine.version:
                raise PreconditionError(
                    f"version is {manifest.version}; version {self._engine.version} serves, and none goes backwards"
                )
            began = time.perf_counter()
            files = await asyncio.to_thread(weights.verify, self._root, manifest)
            pause = await self._engine.update_weights(manifest.version, files)
            seconds = time.perf_counter() - began
        metrics.VERSION.set(manifest.version)
        metrics.UPDATE_SECONDS.observe(seconds)
        metrics.PAUSE_SECONDS.observe(pause)
        log.info("serving version %d after %.3f s, %.3f s of them without sampling", manifest.version, seconds, pause)
        return seconds

    async def follow(self, newest: Callable[[], Awaitable[pb.WeightsManifest | None]], poll_seconds: float) -> None:
        """Loads the newest announcement whenever it changes; versions that came in between are skipped."""
        tried = self._engine.version
        while True:
            manifest = await newest()
            if manifest is not None and manifest.version > max(tried, self._engine.version):
                tried = manifest.version
                await self._try(manifest)
            else:
                await asyncio.sleep(poll_seconds)

    async def _try(self, manifest: pb.WeightsManifest) -> None:
        try:
            await self.load(manifest)
        except (NotFoundError, CorruptDataError, InvalidInputError, PreconditionError) as error:
            reason = type(error).__name__.removesuffix("Error").lower()
            metrics.UPDATES_REFUSED.labels(reason).inc()
            log.error(
                "version %d refused (%s); version %d serves on: %s",
                manifest.version, reason, self._engine.version, error,
            )  # fmt: skip
