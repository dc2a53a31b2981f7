"""A run at one moment: what its Redis, its records and its logs say."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from services.cli.attached import Attached
from services.cli.live.pace import STEPS, Pace, pace
from shared.process import logs
from shared.streams.account import Ledger
from shared.streams.keys import Stream
from shared.streams.progress import Progress
from shared.streams.run import FINISHED, Backlog
from shared.tracking import records

_PROBLEMS = 5
# Of the record of a step: what people look at while a run goes on.
_SHOWN = (
    "reward_mean", "train_accuracy", "staleness_mean", "staleness_max", "gamma_mean", "gamma_p10", "entropy", "kl",
    "grad_norm", "loss",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen of a run. Where its folder is not on this machine, nothing of its records and logs."""

    run: str
    folder: Path | None
    live: bool  # False: what it left
    at: float  # seconds of the monotonic clock
    progress: Progress
    ledger: Ledger
    backlog: Mapping[Stream, Backlog]
    tickets_held: int
    dead_letters: int
    step: Mapping[str, Any]  # the last step's record; empty before the first
    pace: Pace | None
    problems: tuple[logs.Problem, ...]  # the newest last

    @property
    def finished(self) -> bool:
        """Whether all is trained and evaluated."""
        return self.progress.phase == FINISHED and self.progress.final_evaluation == self.progress.version

    @property
    def remaining_seconds(self) -> float | None:
        """How long the steps that are left take; None where that cannot be told."""
        step, steps = self.progress.step, self.progress.total_steps
        if self.pace is None or step is None or steps is None:
            return None
        return self.pace.remaining_seconds(step, steps)

    @property
    def metrics(self) -> dict[str, float | None]:
        """The figures of the last step that people look at, as far as it has them."""
        return {name: self.step[name] for name in _SHOWN if name in self.step}

    def as_record(self) -> dict[str, Any]:
        """For machines."""
        ledger = self.ledger
        return {
            "run": self.run,
            "live": self.live,
            **self.progress.as_record(),
            "remaining_seconds": self.remaining_seconds,
            "pace": None if self.pace is None else asdict(self.pace),
            "last_step": self.metrics,
            "tickets_held": self.tickets_held,
            "streams": {
                stream: {"entries": held.entries, "bytes": held.bytes, "oldest_seconds": held.oldest_seconds}
                for stream, held in self.backlog.items()
            },
            "dead_letters": self.dead_letters,
            "ledger": {
                "prompted": ledger.prompted,
                "trained": ledger.trained,
                "dropped": dict(ledger.dropped),
                "dead": dict(ledger.dead),
                "in_flight": ledger.in_flight,
                "stages": dict(ledger.stages),
                "balanced": ledger.balanced,
            },
            "problems": [{**asdict(problem), "time": problem.time.isoformat()} for problem in self.problems],
        }


async def look(found: Attached) -> Look:
    """Looks once.

    Raises:
        UnavailableError: Redis does not answer.
    """
    run, folder = found.run, found.folder
    steps = [] if folder is None else records.recent(folder / records.LEARNER, STEPS)
    return Look(
        run=run.keys.run,
        folder=folder,
        live=found.live,
        at=time.monotonic(),
        progress=await run.progress(),
        ledger=await run.ledger(),
        backlog=await run.backlog(),
        tickets_held=await run.tickets_held(),
        dead_letters=await run.dead_letters(),
        step=steps[-1] if steps else {},
        pace=pace(steps),
        problems=() if folder is None else tuple(logs.problems(folder / "logs", _PROBLEMS)),
    )
