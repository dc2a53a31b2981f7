"""Samples that no verdict was reached on, kept for people: nobody learns from them, and a verifier may be wrong."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from routershift import wire
from services.reward import metrics
from services.reward.messages import encode_score
from services.reward.outcomes import Scored
from services.reward.settings import UnscoredSettings
from shared.errors import CorruptDataError
from shared.streams.consumer import Entry, parse_group
from shared.tracking.recorded import recorded_samples
from shared.tracking.samples import SampleWriter

log = logging.getLogger(__name__)


class UnscoredSamples:
    """Writes the first groups of each policy version that were dropped for a reason. Failed writes stop nothing."""

    def __init__(self, run: Path, process: str, settings: UnscoredSettings) -> None:
        """Args: run: the run's folder. process: a name that no other reward process has."""
        self._files = SampleWriter(run, settings.max_bytes, process)
        self._groups = settings.groups
        self._kept: Counter[tuple[int, str]] = Counter()  # groups by version and reason
        self._one_at_a_time = asyncio.Lock()
        self._fails = False

    async def keep(self, entry: Entry, results: Sequence[Scored], reason: str) -> None:
        """Keeps a group, where there are not enough of its kind.

        Args:
            results: of each of its samples.
            reason: why it was dropped, such as verifier_failed.
        """
        async with self._one_at_a_time:
            if self._groups:
                await asyncio.to_thread(self._write, entry, results, reason)

    def _write(self, entry: Entry, results: Sequence[Scored], reason: str) -> None:
        try:
            group = parse_group(entry)
        except CorruptDataError:  # not the fault of the verifier, and said elsewhere
            return
        version = wire.newest_version(group.trajectories) or 0
        if self._kept[version, reason] >= self._groups:
            return
        self._kept[version, reason] += 1
        for trajectory, result in zip(group.trajectories, results, strict=True):
            trajectory.score.CopyFrom(encode_score(result))
        samples = recorded_samples(group, entry.group, version + 1, reason)  # the next version is being collected
        try:
            written = self._files.add(samples)
        except OSError as error:
            metrics.UNSCORED.labels("refused").inc(len(samples))
            if not self._fails:  # said once, until it works again
                log.error("%d samples not kept: %s: %s", len(samples), error.filename, error.strerror)
            self._fails = True
            return
        self._fails = False
        metrics.UNSCORED.labels("kept").inc(written)
        metrics.UNSCORED.labels("no_room").inc(len(samples) - written)
