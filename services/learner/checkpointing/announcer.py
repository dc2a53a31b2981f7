"""Tells generation of published versions, and sends them over the network where the run says so.

Every rank of the learner sends its part to every worker of generation, out of memory: no file lies in between. What
changed since the version before is sent where all replicas that are there have that one, and all of it otherwise. A
transfer goes on beside the training of the next step; one that fails is counted and not repeated at once, for the next
version is sent to whoever is there then. Replicas for which what changed was of no use get all of the version at once,
and those that it has not reached when the learner has nothing to do.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from routershift.v1 import trajectory_pb2 as pb
from services.learner import metrics
from services.learner.checkpointing.held import Sizes
from services.learner.checkpointing.sending import Sending
from services.learner.settings import Settings
from shared.errors import UnavailableError
from shared.process.detached import detached
from shared.streams.run import Replica, Run
from shared.weights import rendezvous
from shared.weights.broadcast import LackingError, Sender

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class _Version:
    """What is announced."""

    manifest: pb.WeightsManifest  # without a way over the network
    sizes: Sizes | None  # of what is sent; None: it is not
    base: int | None  # version that its changes begin with


class Announcer:
    def __init__(self, settings: Settings, run: Run, sending: Sending | None = None) -> None:
        """Args: sending: what sends versions, where they go over the network."""
        self._settings = settings
        self._run = run
        self._sending = sending
        self._taken: int | None = None  # the version that `sending` has
        self._newest: _Version | None = None
        self._reached: set[str] = set()  # replicas that were sent the newest
        self._called: set[str] = set()  # replicas that the last transfer was for
        self._sender: Sender | None = None  # while it is under way
        self._transfer: asyncio.Task[None] | None = None

    def adopt(self, manifest: pb.WeightsManifest) -> None:
        """A version that is on disk and was announced by an earlier process."""
        self._newest, self._reached = _Version(_plain(manifest), None, None), set()

    def begin(self, version: int) -> None:
        """Says which version `sending` has, where it is not announced: the model that all begin with."""
        self._taken = version

    async def settled(self) -> None:
        """Returns when nothing is sent. It waits for replicas that are busy, and not for those that have died."""
        while (transfer := self._transfer) is not None and not transfer.done():
            if self._sender is not None and self._called - (await self._run.replicas()).keys():
                self._sender.call_off()
            await asyncio.wait({transfer}, timeout=_LOOK_SECONDS)

    async def announce(self, manifest: pb.WeightsManifest, sizes: Sizes | None = None) -> None:
        """Tells of a version, and begins to send it to the replicas that are there.

        Args:
            sizes: of the version, which `sending` has; None: it is not sent.
        """
        had, self._reached = self._reached, set()
        base = self._taken if sizes is not None and sizes.changes is not None else None
        self._newest = newest = _Version(_plain(manifest), sizes, base)
        if sizes is not None:
            self._taken = manifest.version
        replicas = await self._behind(newest)
        has_base = all(name in had or each.version == base for name, each in replicas.items())
        full_every = self._settings.run.weights_full_every
        sends_changes = base is not None and has_base and manifest.version % full_every
        await self._meet(newest, replicas, whole=not sends_changes)

    async def remind(self) -> None:
        """Announces the newest version again where Redis, back from a crash, or a replica does not have it."""
        if (newest := self._newest) is None:
            return
        known = await self._run.newest_weights()
        if known is None or known.version < newest.manifest.version:
            log.warning("version %d is announced again: Redis has forgotten it", newest.manifest.version)
            await self._run.announce(newest.manifest)
        if self._transfer is None or self._transfer.done():
            behind = await self._behind(newest)
            if lacking := {name: each for name, each in behind.items() if name not in self._reached}:
                await self._meet(newest, lacking, whole=True)

    async def _behind(self, newest: _Version) -> dict[str, Replica]:
        """The replicas that are to get a version: none where it is not sent."""
        if newest.sizes is None:
            return {}
        version = newest.manifest.version
        return {name: each for name, each in (await self._run.replicas()).items() if each.version < version}

    async def _meet(self, version: _Version, replicas: Mapping[str, Replica], *, whole: bool) -> None:
        """Announces a version, with a place where these replicas get it."""
        sender = await self._open(version, replicas, whole=whole)
        if sender is not None:
            self._sender, self._called = sender, set(replicas)
            self._transfer = asyncio.create_task(self._send(version, sender, replicas))

    async def _open(self, version: _Version, replicas: Mapping[str, Replica], *, whole: bool) -> Sender | None:
        """Announces a version; gives its rendezvous, where there are replicas to meet and one can be opened."""
        announced, sender = _plain(version.manifest), None
        sending, sizes = self._sending, version.sizes
        if replicas and sending is not None and sizes is not None:
            workers = sum(each.workers for each in replicas.values())
            base = None if whole else version.base
            try:
                sender = await detached(lambda: sending.open(workers, base))
            except UnavailableError as error:
                _failed(version, error)
            else:
                ranks = {name: ranks.start for name, ranks in _ranks(sender, replicas).items()}
                nbytes = sizes.whole if base is None or sizes.changes is None else sizes.changes
                announced.broadcast.CopyFrom(rendezvous.encode(sender.rendezvous, ranks, sending.specs, nbytes))
        await self._run.announce(announced)
        return sender

    async def _send(self, version: _Version, sender: Sender, replicas: Mapping[str, Replica]) -> None:
        """To these replicas, and then all of it to those that could not use what changed."""
        now: Sender | None = sender
        while now is not None:
            self._sender, self._called = now, set(replicas)
            lacking = await self._sent(version, now, replicas)
            self._sender = None
            replicas = {name: replicas[name] for name in lacking}
            now = await self._open(version, replicas, whole=True) if lacking else None

    async def _sent(self, version: _Version, sender: Sender, replicas: Mapping[str, Replica]) -> set[str]:
        """One transfer; gives the replicas that are to get all of the version at once."""
        sending, is_whole = self._sending, sender.rendezvous.base is None
        if sending is None:
            return set()
        try:
            refused = await detached(lambda: sending.send(sender))
        except LackingError as error:
            metrics.TRANSFERS.labels("failed").inc()
            log.warning("version %d: %s; all of it is sent", version.manifest.version, error)
            return set(replicas)
        except UnavailableError as error:
            _failed(version, error)
            return set()
        finally:
            sender.call_off()  # where the learner ends meanwhile
        differ = {name for name, ranks in _ranks(sender, replicas).items() if refused.intersection(ranks)}
        self._reached |= replicas.keys() - differ
        if differ:
            _failed(version, f"{', '.join(sorted(differ))} got other bytes than were sent")
            return set() if is_whole else differ
        metrics.TRANSFERS.labels("ok").inc()
        what = "all" if is_whole else f"what changed since version {sender.rendezvous.base}"
        log.info("version %d was sent to %d replicas: %s", version.manifest.version, len(replicas), what)
        return set()


def _plain(manifest: pb.WeightsManifest) -> pb.WeightsManifest:
    """A copy without a way over the network."""
    copy = pb.WeightsManifest()
    copy.CopyFrom(manifest)
    copy.ClearField("broadcast")
    return copy


def _ranks(sender: Sender, replicas: Mapping[str, Replica]) -> dict[str, range]:
    """The ranks of the workers of each replica."""
    ranks, rank = {}, sender.rendezvous.senders
    for name, each in replicas.items():
        ranks[name] = range(rank, rank + each.workers)
        rank += each.workers
    return ranks


def _failed(version: _Version, why: object) -> None:
    metrics.TRANSFERS.labels("failed").inc()
    log.warning("version %d was not sent to all replicas, and training goes on: %s", version.manifest.version, why)
