"""New weights while serving: verified, never backwards, the newest only, and the old ones stay if anything fails.

They come over the network where the learner sends them to this replica, and from files otherwise.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

from routershift.v1 import trajectory_pb2 as pb
from services.generation import metrics
from services.generation.engines.base import Arriving, Engine, Files
from services.generation.weights.source import WeightsSource
from shared.errors import (
    CorruptDataError,
    InvalidInputError,
    NotFoundError,
    PreconditionError,
    RouterShiftError,
    UnavailableError,
)
from shared.process.detached import detached
from shared.weights import rendezvous

log = logging.getLogger(__name__)


def _same_files(one: pb.WeightsManifest, other: pb.WeightsManifest) -> bool:
    """Whether both name the same weights; a version that is announced again comes another way over the network."""
    return one.folder == other.folder and list(one.files) == list(other.files)


class WeightsLoader:
    """The one way to an engine's weights, for the stream of announcements and for the RPC alike."""

    def __init__(
        self,
        engine: Engine,
        root: Path,
        replica: str = "",
        announced: Callable[[], Awaitable[list[pb.WeightsManifest]]] | None = None,
    ) -> None:
        """
        Args:
            root: of the weights on disk.
            replica: its name, under which the learner sends to it.
            announced: gives the versions that the learner has announced; None where there is no learner to ask about.
        """
        self._engine = engine
        self._source = WeightsSource(root)
        self._replica = replica
        self._announced = announced
        self._tried: pb.WeightsManifest | None = None
        self._refused = -1
        self._lock = asyncio.Lock()

    @property
    def refused(self) -> int:
        """The highest version that was announced and could not be taken; -1 where there was none."""
        return self._refused

    async def load_announced(self, manifest: pb.WeightsManifest) -> float:
        """As `load`, for a caller that may have made the manifest up: only what the learner has announced is loaded.

        Versions count upwards alone, so that one far above the learner's would keep all of its later weights out.

        Raises:
            PreconditionError: the learner has not announced this version, or not with these files; as `load` besides.
            UnavailableError: Redis does not answer.
        """
        known = await self._announced() if self._announced is not None else []
        found = next((each for each in known if each.version == manifest.version), None)
        if manifest.version > self._engine.version and (found is None or not _same_files(found, manifest)):
            newest = f"the newest is version {known[0].version}" if known else "it has announced none"
            what = "with these files" if found else "that the learner has announced"
            raise PreconditionError(
                f"manifest.version is {manifest.version}; expected a version {what} to this run, and {newest}"
            )
        return await self.load(manifest)

    async def load(self, manifest: pb.WeightsManifest) -> float:
        """Seconds that it took to verify and take this version.

        Raises:
            PreconditionError: the version is not above the one that serves.
            NotFoundError, CorruptDataError: a file is missing, cannot be read, or is not what the manifest says.
            InvalidInputError: weights of another architecture, or with NaN or infinity.
            UnavailableError: the engine has died of them.
        """
        async with self._lock:
            if manifest.version <= self._engine.version:
                raise PreconditionError(
                    f"version is {manifest.version}; version {self._engine.version} serves, and none goes backwards"
                )
            began = time.perf_counter()
            pause = await self._take(manifest)
            seconds = time.perf_counter() - began
        metrics.VERSION.set(manifest.version)
        metrics.UPDATE_SECONDS.observe(seconds)
        metrics.PAUSE_SECONDS.observe(pause)
        log.info("serving version %d after %.3f s, %.3f s of them without sampling", manifest.version, seconds, pause)
        return seconds

    async def restore(self, announced: Iterable[pb.WeightsManifest]) -> RouterShiftError | None:
        """Loads the first of these versions that is whole; gives what is wrong with the first where none is."""
        first = None
        for manifest in announced:
            if (error := await self._try(manifest)) is None:
                return None
            first = first or error
        return first

    async def follow(self, newest: Callable[[], Awaitable[pb.WeightsManifest | None]], poll_seconds: float) -> None:
        """Loads the newest announcement whenever it changes; versions that came in between are skipped."""
        while True:
            manifest = await newest()
            # The learner announces a version again to replicas that it has not reached.
            if manifest is not None and manifest.version > self._engine.version and manifest != self._tried:
                await self._try(manifest)
            else:
                await asyncio.sleep(poll_seconds)

    async def _take(self, manifest: pb.WeightsManifest) -> float:
        engine, version = self._engine, manifest.version
        if self._replica in manifest.broadcast.first_ranks:
            try:
                return await self._receive(manifest)
            except (CorruptDataError, UnavailableError) as error:
                if not await engine.healthy():
                    raise
                log.warning("version %d did not come over the network; looking for its files: %s", version, error)
        try:
            files = await asyncio.to_thread(self._source.open, manifest)
            try:
                pause = await engine.update_weights(version, Files(files.paths))
            except BaseException:
                files.close()
                raise
            self._source.serve(files)
            metrics.WEIGHTS_BYTES.labels(files.kind).inc(files.moved)
            return pause
        except RouterShiftError:
            raise  # some of these are OSErrors too
        except OSError as error:
            # The learner keeps a few versions, and may have published that many while this one was read.
            raise NotFoundError(f"files of version {version} can no longer be read: {error}") from error

    async def _receive(self, manifest: pb.WeightsManifest) -> float:
        """Takes what the learner sends; gives the seconds without sampling.

        Raises:
            UnavailableError: it does not come, or is what changed since a version that does not serve here.
            CorruptDataError, InvalidInputError: of `Engine.update_weights`.
        """
        from shared.weights.broadcast import decline  # it imports torch, which an engine does first

        engine, sent = self._engine, manifest.broadcast
        place, specs = rendezvous.decode(sent)
        first = sent.first_ranks[self._replica]
        if place.base is not None and place.base != engine.version:
            metrics.DELTAS_REFUSED.labels("base").inc()
            await detached(lambda: decline(place, range(first, first + engine.info.workers)))
            raise UnavailableError(f"its changes begin with version {place.base}, and {engine.version} serves here")
        try:
            pause = await engine.update_weights(manifest.version, Arriving(place, first, specs))
        except CorruptDataError:
            if place.base is not None:
                metrics.DELTAS_REFUSED.labels("corruptdata").inc()
            raise
        self._source.serve(None)
        kind = "broadcast" if place.base is None else "broadcast_delta"
        metrics.WEIGHTS_BYTES.labels(kind).inc(engine.info.workers * sent.size_bytes)
        return pause

    async def _try(self, manifest: pb.WeightsManifest) -> RouterShiftError | None:
        """Counts and gives the error where this version cannot be taken."""
        if self._tried is None or manifest.version >= self._tried.version:
            self._tried = manifest
        try:
            await self.load(manifest)
        except (NotFoundError, CorruptDataError, InvalidInputError, PreconditionError) as error:
            reason = type(error).__name__.removesuffix("Error").lower()
            metrics.UPDATES_REFUSED.labels(reason).inc()
            self._refused = max(self._refused, manifest.version)
            log.error(
                "version %d refused (%s); version %d serves on: %s",
                manifest.version, reason, self._engine.version, error,
            )  # fmt: skip
            return error
        return None
