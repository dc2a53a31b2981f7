"""What a step leaves for people: metrics, a line in the run's records, and the batches that were skipped."""

import contextlib
import logging
import shutil
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from services.learner import metrics
from services.learner.data.messages import Scored, whole_message
from services.learner.monitoring.report import StepReport
from services.learner.settings import Settings
from shared.errors import UnavailableError
from shared.payloads.bulk import PayloadError
from shared.streams.consumer import parse_group
from shared.streams.run import Run
from shared.tracking.recording import Recording

log = logging.getLogger(__name__)


class Recorder:
    """Records steps. Failed writes are logged and counted, and never stop training."""

    def __init__(self, settings: Settings, run: Run) -> None:
        self._settings = settings
        self._run = run
        self._recording = Recording(settings, "learner")
        self._began = time.perf_counter()
        self._phases: dict[str, float] = {}

    def close(self) -> None:
        """Gives trackers the time to send what they hold."""
        self._recording.close()

    def show(self, state: str) -> None:
        """What the learner does: waiting for rollouts, training, paused or finished."""
        for known in ("waiting", "training", "paused", "finished"):
            metrics.STATE.labels(known).set(known == state)

    def lap(self, phase: str) -> None:
        """The time since the last lap was spent in this phase."""
        now = time.perf_counter()
        self._phases[phase] = self._phases.get(phase, 0.0) + now - self._began
        metrics.PHASE_SECONDS.labels(phase).inc(now - self._began)
        self._began = now

    async def step(self, batch: Sequence[Scored], staleness: Sequence[int], report: StepReport) -> None:
        """Records a step that has been taken."""
        rewards = [reward for scored in batch for reward in scored.rewards]
        reward, accuracy = float(np.mean(rewards)), float(np.mean([scored.correct for scored in batch]))
        now = datetime.now(UTC)
        ages = [(now - scored.generated_at).total_seconds() for scored in batch]
        metrics.STEP.set(report.step)
        metrics.TRAJECTORIES.inc(len(rewards))
        metrics.TOKENS.inc(sum(s.completion.token_ids.size for scored in batch for s in scored.group.samples))
        metrics.FLOPS.inc(report.flops)
        metrics.REWARD.set(reward)
        metrics.TRAIN_ACCURACY.set(accuracy)
        for versions, seconds in zip(staleness, ages, strict=True):
            metrics.STALENESS.observe(versions)
            metrics.AGE.observe(seconds)
        for name, gauge in metrics.DIAGNOSTIC.items():
            if name in report.diagnostics:
                gauge.set(report.diagnostics[name])
        for name, value in report.diagnostics.items():
            kind, _, layer = name.partition("_layer_")
            if layer:
                metrics.BY_LAYER[kind].labels(layer).set(value)
        backlog, ledger = await self._run.backlog(), await self._run.ledger()
        record = {
            "step": report.step,
            "trajectories": len(rewards),
            "reward_mean": reward,
            "train_accuracy": accuracy,
            "staleness_mean": float(np.mean(staleness)),
            "staleness_max": max(staleness),
            "age_seconds_mean": float(np.mean(ages)),
            "queue": {stream: held.entries for stream, held in backlog.items()},
            "seconds": self._phases,
            "dropped": {**ledger.dropped, **{f"dead: {reason}": count for reason, count in ledger.dead.items()}},
            **report.diagnostics,
        }
        with _not_needed("record"):
            self._recording.add("step", record)
        self._began, self._phases = time.perf_counter(), {}
        log.info(
            "step %d/%d: reward %.3f, staleness %d, gamma %.4f",
            report.step, self._settings.run.steps, reward, max(staleness), report.diagnostics.get("gamma_mean", 1.0),
        )  # fmt: skip

    def keep_skipped(self, folder: Path, batch: Sequence[Scored]) -> None:
        """Writes each group as the TrajectoryGroup message that came, with its arrays where they can be had.

        The newest `max_skipped` batches stay.
        """
        with _not_needed("skipped_batch"):
            folder.mkdir(parents=True, exist_ok=True)
            for i, scored in enumerate(batch):
                (folder / f"{i:04d}.binpb").write_bytes(self._whole(scored))
            kept = self._settings.learner.optimizer.max_skipped
            for old in sorted(folder.parent.iterdir(), key=lambda path: path.stat().st_mtime_ns)[:-kept]:
                shutil.rmtree(old)

    def _whole(self, scored: Scored) -> bytes:
        try:
            message = whole_message(scored.entry, self._run.bulk)
        except (PayloadError, UnavailableError) as error:
            log.warning("group %s of a skipped batch is kept without arrays: %s", scored.entry.group, error)
            message = parse_group(scored.entry)
        encoded: bytes = message.SerializeToString()
        return encoded


@contextlib.contextmanager
def _not_needed(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        metrics.REFUSED_WRITES.labels(name).inc()
        log.error("%s not written to %s: %s", name.replace("_", " "), error.filename, error.strerror)
