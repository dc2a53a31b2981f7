"""Tells generation of published versions, and sends them over the network where the run says so.

The files are there in both cases: a resumed learner and a replica that comes late need them. A transfer goes on beside
the training of the next step; one that fails is counted and not repeated at once, for the next version is sent
to whoever is there then. A learner that has nothing to do sends the newest version to replicas that it has not reached.
"""

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError

from routershift.v1 import trajectory_pb2 as pb
from services.learner import metrics
from services.learner.settings import Settings
from shared.errors import CorruptDataError, UnavailableError
from shared.streams.run import Replica, Run
from shared.weights import rendezvous
from shared.weights.broadcast import Sender, detached, specs_of

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
# What may be wrong with a transfer and not with the learner.
_FAILURES = (UnavailableError, CorruptDataError, OSError, SafetensorError)


class Announcer:
    def __init__(self, settings: Settings, run: Run) -> None:
        self._settings = settings
        self._run = run
        self._newest: pb.WeightsManifest | None = None  # as it is on disk
        self._reached: set[str] = set()  # replicas that were sent it
        self._called: set[str] = set()  # replicas that the last transfer was for
        self._sender: Sender | None = None  # while it is under way
        self._transfer: asyncio.Task[None] | None = None

    def adopt(self, manifest: pb.WeightsManifest) -> None:
        """A version that is on disk and was announced by an earlier process."""
        self._newest, self._reached = pb.WeightsManifest(), set()
        self._newest.CopyFrom(manifest)
        self._newest.ClearField("broadcast")

    async def announce(self, manifest: pb.WeightsManifest) -> None:
        """Tells of a version that is on disk, and begins to send it to the replicas that are there."""
        await self._end_transfer()
        self.adopt(manifest)
        await self._meet(manifest, await self._run.replicas() if self._sends else {})

    async def remind(self) -> None:
        """Announces the newest version again where Redis, back from a crash, or a replica does not have it."""
        if self._newest is None:
            return
        known = await self._run.newest_weights()
        if known is None or known.version < self._newest.version:
            log.warning("version %d is announced again: Redis has forgotten it", self._newest.version)
            await self._run.announce(self._newest)
        if self._sends and self._sender is None:
            replicas, version = await self._run.replicas(), self._newest.version
            behind = {name: each for name, each in replicas.items() if each.version < version}
            if lacking := {name: each for name, each in behind.items() if name not in self._reached}:
                await self._meet(self._newest, lacking)

    @property
    def _sends(self) -> bool:
        return self._settings.run.weights_transfer == "broadcast"

    async def _end_transfer(self) -> None:
        """Waits for replicas that are busy, and not for those that have died."""
        while (transfer := self._transfer) is not None and not transfer.done():
            if self._sender is not None and self._called - (await self._run.replicas()).keys():
                self._sender.call_off()
            await asyncio.wait({transfer}, timeout=_LOOK_SECONDS)

    async def _meet(self, manifest: pb.WeightsManifest, replicas: Mapping[str, Replica]) -> None:
        """Announces a version, with a place where these replicas get it."""
        announced = pb.WeightsManifest()
        announced.CopyFrom(manifest)
        files = [self._settings.run.weights_root / manifest.folder / file.name for file in manifest.files]
        sender = None
        if replicas:
            try:
                sender = await self._open(announced, files, replicas)
            except _FAILURES as error:
                _failed(manifest.version, error)
        await self._run.announce(announced)
        if sender is not None:
            self._sender, self._called = sender, set(replicas)
            self._transfer = asyncio.create_task(self._send(sender, manifest.version, files))

    async def _open(self, manifest: pb.WeightsManifest, files: list[Path], replicas: Mapping[str, Replica]) -> Sender:
        """Adds the rendezvous to the manifest."""
        learner, transfer = self._settings.learner, self._settings.learner.transfer
        device = torch.device(learner.device if transfer.backend == "nccl" else "cpu")
        first_ranks, size = {}, 1
        for name, replica in replicas.items():
            first_ranks[name] = size
            size += replica.workers
        specs = await asyncio.to_thread(specs_of, files)
        sender = await detached(lambda: Sender(transfer.host, size - 1, transfer.timeout_seconds, device))
        manifest.broadcast.CopyFrom(rendezvous.encode(sender.rendezvous, first_ranks, specs))
        return sender

    async def _send(self, sender: Sender, version: int, files: list[Path]) -> None:
        try:
            await detached(lambda: sender.send(files))
        except _FAILURES as error:
            _failed(version, error)
        else:
            metrics.TRANSFERS.labels("ok").inc()
            log.info("version %d was sent to %d replicas", version, len(self._called))
            self._reached |= self._called
        finally:
            sender.call_off()  # where the learner ends meanwhile
            self._sender = None


def _failed(version: int, error: Exception) -> None:
    metrics.TRANSFERS.labels("failed").inc()
    log.warning("version %d was not sent to all replicas, and training goes on: %s", version, error)
