"""Versions of the weights: announced to generation, which reads their files or is sent them.

Where versions are sent, only those have files that somebody reads later: the versions that are evaluated, that have a
checkpoint by their number, and the last. Of the others there is a manifest on disk, so that it is known what was
published.
"""

import asyncio
import logging
from pathlib import Path
from typing import Protocol

from routershift.v1 import trajectory_pb2 as pb
from services.learner import metrics
from services.learner.checkpointing.announcer import Announcer
from services.learner.checkpointing.held import Sizes
from services.learner.checkpointing.retries import Retries
from services.learner.checkpointing.sending import Sending
from services.learner.settings import Settings
from shared.errors import CorruptDataError, NotFoundError
from shared.models.folder import copy_descriptions
from shared.streams.run import Run
from shared.tracing import spans
from shared.tracing.kinds import PUBLISH
from shared.weights import published

log = logging.getLogger(__name__)


class Publishable(Protocol):
    """What is published: a trainer, as far as its weights go."""

    step: int  # batches done

    sending: Sending | None  # where weights go over the network

    def export_weights(self, folder: Path) -> None:
        """Writes safetensors with the tensor names and the dtype of the model folder."""
        ...

    def take_version(self) -> Sizes:
        """Makes the weights as they are now the version that `sending` sends."""
        ...


class Publisher:
    def __init__(self, settings: Settings, trainer: Publishable, run: Run) -> None:
        self._settings = settings
        self._trainer = trainer
        self._run = run
        self._announcer = Announcer(settings, run, trainer.sending)
        self._disk = Retries(settings, run)
        self._published = 0

    @property
    def newest(self) -> int:
        """The highest version that was ever published in this run.

        It is above the trainer's step while steps after the checkpoint of a restart are taken again.
        """
        return max(self._published, self._trainer.step)

    async def start(self) -> None:
        """Publishes a resumed run's weights, so that generation serves at least what the learner has.

        Raises:
            UnavailableError: the disk takes no writes.
        """
        # Redis is not asked: what is announced there may be another's word.
        self._published = max(await asyncio.to_thread(published.versions, self._settings.run.weights_root), default=0)
        if self._trainer.sending is not None:
            # Nobody else has what this learner has, so that it is announced even where a later one was before a crash.
            if self._trainer.step > 0:
                await self.publish(asyncio.Event())
            else:
                await asyncio.to_thread(self._trainer.take_version)
                self._announcer.begin(0)
            return
        newest = await self._run.newest_weights()
        if self._trainer.step > 0 and not await asyncio.to_thread(self._is_served, newest):
            await self.publish(asyncio.Event())
        elif newest is not None:
            self._announcer.adopt(newest)

    async def remind(self) -> None:
        """Announces the newest version again where it is not known; see Announcer."""
        await self._announcer.remind()

    async def publish(self, stop: asyncio.Event) -> None:
        """Announces the weights of this step, and writes their files where they are read or kept.

        Raises:
            UnavailableError: the disk takes no writes.
        """
        with spans.span(PUBLISH):
            sizes = None
            if self._trainer.sending is not None:
                await self._announcer.settled()
                sizes = await asyncio.to_thread(self._trainer.take_version)
            has_files = sizes is None or self._is_kept(self._trainer.step)
            manifest = await self._write(stop, has_files=has_files)
            await self._announcer.announce(manifest, sizes)
        metrics.VERSION.set(manifest.version)

    async def keep(self, stop: asyncio.Event) -> None:
        """Sees to it that the newest version has files: it is the last.

        Raises:
            UnavailableError: the disk takes no writes.
        """
        step = self._trainer.step
        folder = self._settings.run.weights_root / published.folder_name(step)
        if self._trainer.sending is not None and step > 0 and not published.has_files(folder):
            await self._write(stop, has_files=True)

    def _is_kept(self, step: int) -> bool:
        """Whether a version that is sent gets files too."""
        run, every = self._settings.run, self._settings.learner.checkpoints.every
        is_evaluated = run.evaluate_every > 0 and step % run.evaluate_every == 0
        return is_evaluated or step % every == 0 or step == run.steps

    async def _write(self, stop: asyncio.Event, *, has_files: bool) -> pb.WeightsManifest:
        root, keep = self._settings.run.weights_root, self._settings.learner.checkpoints.keep_weights
        step, full_every = self._trainer.step, self._settings.run.weights_full_every
        has_changes = self._trainer.sending is None and full_every and step % full_every
        base = step - 1 if has_changes else None
        protected = await protected_versions(self._settings, self._run, step)

        def write() -> pb.WeightsManifest:
            return published.publish(root, step, self._export if has_files else _nothing, keep, protected, base)

        return await self._disk.written("weights", step, root, write, stop)

    def _export(self, folder: Path) -> None:
        """Fills a folder that transformers and vLLM load as they load the model that the run began with."""
        self._trainer.export_weights(folder)
        copy_descriptions(self._settings.run.model_folder(), folder)

    def _is_served(self, newest: pb.WeightsManifest | None) -> bool:
        """Whether the version of this step can be loaded, or a later one was announced before a crash."""
        if newest is None or newest.version != self._trainer.step:
            return newest is not None and newest.version > self._trainer.step
        try:
            published.verify(self._settings.run.weights_root, newest)
        except (NotFoundError, CorruptDataError) as error:
            log.warning("version %d is published again: %s", newest.version, error)
            return False
        return True


async def protected_versions(settings: Settings, run: Run, newest: int) -> set[int]:
    """Versions up to the newest whose weights and checkpoints stay whatever their age."""
    return published.protected_versions(
        await run.progress(), newest, settings.run.evaluate_every, settings.learner.checkpoints.keep_best
    )


def _nothing(_: Path) -> None:
    """Leaves the folder of a version empty."""
