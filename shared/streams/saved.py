"""The part of a run that only Redis knows and a checkpoint carries: where the curriculum is, and solve rates.

The learner saves it with each checkpoint. The curriculum brings it back into a Redis that knows nothing of the run, as
after the loss of its data, or in a run that was forked.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from shared.streams.progress import Progress
from shared.streams.run import Run

log = logging.getLogger(__name__)

FILE = "curriculum.json"  # in the folder of a checkpoint

# What the curriculum has reported and nothing else can tell. An evaluation in progress is made again.
_PROGRESS = (
    "prompts", "selection", "evaluated_version", "held_out", "accuracy", "greedy_accuracy", "best_version",
    "best_accuracy", "accuracies",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Saved:
    """At one moment of the run; prompts that were in flight then are not in it."""

    step: int  # of the checkpoint
    progress: Progress
    solve_rates: Mapping[str, str]  # by problem, as Redis has them

    @classmethod
    async def collect(cls, run: Run, step: int) -> Self:
        """Reads it from Redis, for the checkpoint of a step."""
        found = await run.progress()
        kept = {name: getattr(found, name) for name in _PROGRESS}
        return cls(step, Progress(**kept), await run.solve_rates.dump())

    def encode(self) -> str:
        """JSON."""
        found = {"step": self.step, "progress": self.progress.as_record(), "solve_rates": dict(self.solve_rates)}
        return json.dumps(found)

    @classmethod
    def decode(cls, text: str) -> Self:
        """The inverse of `encode`. Raises ValueError where it is something else."""
        try:
            found: Any = json.loads(text)
            known = {field.name for field in fields(Progress)}
            progress = Progress(**{name: value for name, value in found["progress"].items() if name in known})
            rates = {str(problem): str(rate) for problem, rate in found["solve_rates"].items()}
            return cls(int(found["step"]), progress, rates)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not what a checkpoint carries of a run: {error!r}") from None

    async def restore(self, run: Run) -> None:
        """Writes it into Redis: solve rates first, so that a restore which is cut short is made again."""
        await run.solve_rates.restore(self.solve_rates)
        await run.report_progress(self.progress)


def newest(checkpoints: Path) -> tuple[Path, Saved] | None:
    """What the newest checkpoint that carries it has, and its folder; None where none does.

    Args:
        checkpoints: the folder of a run's checkpoints.
    """
    for folder in sorted(checkpoints.glob("step-*"), reverse=True):
        try:
            return folder, Saved.decode((folder / FILE).read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read, and an older one is looked for: %s", folder / FILE, error)
    return None


async def restore_lost(run: Run, checkpoints: Path) -> Path | None:
    """Brings back what the newest checkpoint carries where Redis knows nothing of the run's prompts.

    Returns:
        The checkpoint's folder; None where there was nothing to bring back.
    """
    known = await run.progress()
    if known.prompts is not None or known.evaluated_version is not None or (await run.ledger()).prompted:
        return None
    if (found := newest(checkpoints)) is None:
        return None
    folder, saved = found
    await saved.restore(run)
    log.warning(
        "Redis knew nothing of run %s: prompts go on at %d, with solve rates of %d problems, from %s",
        run.keys.run, saved.progress.prompts or 0, len(saved.solve_rates), folder,
    )  # fmt: skip
    return folder
