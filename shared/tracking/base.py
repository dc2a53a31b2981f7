"""What a tracker is: an experiment tracker or the like, which gets a copy of every record of a run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from shared.settings import RunSettings

# What a record is of: an optimizer step of the learner, or an evaluation of the curriculum.
Kind = Literal["step", "evaluation"]


class Tracker(ABC):
    """Takes records, one at a time, in a thread of its own.

    The learner and the curriculum each make one: the same run, from two processes.
    """

    name: ClassVar[str]  # what `run.trackers` calls it

    def __init__(self, run: RunSettings) -> None:
        """Opens it for a run, which may be a resumed one.

        Raises:
            RouterShiftError: it cannot be used; the service says so and does not start.
        """
        self.run = run

    @abstractmethod
    def log(self, kind: Kind, record: Mapping[str, Any]) -> None:
        """Takes a record: strict JSON values by name, with "step" or "version" among them.

        Whatever it raises is logged and counted, and stops nothing.
        """

    def close(self) -> None:  # noqa: B027  # most need nothing
        """Sends what is still to be sent."""
