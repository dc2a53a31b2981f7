"""When a run ends: after its steps, or as soon as a criterion of [run.stop] is met."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from shared.settings import RunSettings
from shared.streams.progress import Progress


@dataclass(slots=True)
class Spent:
    """What training has taken so far, over all starts of the run."""

    seconds: float = 0.0  # of the learner, waiting for groups included, paused not
    tokens: int = 0  # of the responses that were trained on, once each

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Self:
        """From the meta of a checkpoint; nothing, where that does not say."""
        return cls(**meta.get("spent", {}))

    def as_meta(self) -> dict[str, Any]:
        return {"spent": asdict(self)}


class Ending:
    """Counts what training takes, and says why the run ends."""

    def __init__(self, run: RunSettings, spent: Spent) -> None:
        """Args: spent: that of the checkpoint; counts on."""
        self.spent = spent
        self._run = run
        self._since = time.monotonic()

    def tick(self, *, counts: bool) -> None:
        """The time since the last tick, or since it was made, counts or does not."""
        now = time.monotonic()
        if counts:
            self.spent.seconds += now - self._since
        self._since = now

    def reason(self, step: int, progress: Progress) -> str | None:
        """In words; None where the run goes on. Before the first step it always does.

        Args:
            step: steps done.
            progress: of the run, whose best accuracy counts.
        """
        run, stop = self._run, self._run.stop
        if step >= run.steps:
            return f"all {run.steps} steps of run.steps are done"
        if step == 0:
            return None
        if stop.accuracy is not None and (progress.best_accuracy or 0.0) >= stop.accuracy:
            return (
                f"held-out accuracy {progress.best_accuracy:.4g} of version {progress.best_version} has reached "
                f"run.stop.accuracy = {stop.accuracy:g}"
            )
        if stop.seconds is not None and self.spent.seconds >= stop.seconds:
            return f"{self.spent.seconds:.0f} s of training have reached run.stop.seconds = {stop.seconds:g}"
        if stop.tokens is not None and self.spent.tokens >= stop.tokens:
            return f"{self.spent.tokens} tokens trained on have reached run.stop.tokens = {stop.tokens}"
        return None
