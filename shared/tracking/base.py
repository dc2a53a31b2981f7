"""What a tracker is: an experiment tracker or the like, which gets a copy of every record of a run."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from shared.settings import BaseSettings

# What a record is of: an optimizer step of the learner, or an evaluation of the curriculum.
Kind = Literal["step", "evaluation"]


class Tracker(ABC):
    """Takes records, one at a time. All but the constructor is called in a thread that nobody waits for.

    The learner and the curriculum each make one: the same run, from two processes.
    """

    name: ClassVar[str]  # what `run.trackers` calls it

    def __init__(self, settings: BaseSettings, service: str) -> None:
        """Checks what can be known without a network and without writing.

        Args:
            settings: of the service; the run's configuration, in which secrets are masked when it is dumped.
            service: "learner" or "curriculum".

        Raises:
            RouterShiftError: it cannot be used; the service says so and does not start.
        """
        self.settings = settings
        self.run = settings.run
        self.service = service

    def open(self) -> str | None:
        """Opens it for a run, which may be a resumed one. Called again, after a pause, where it raised.

        Records wait until it has succeeded.

        Returns:
            Where its records go, for the log; None: nothing is said.
        """
        return None

    @abstractmethod
    def log(self, kind: Kind, record: Mapping[str, Any]) -> None:
        """Takes a record: strict JSON values by name, with "step" or "version" among them.

        Whatever it raises is logged and counted, and stops nothing.
        """

    def close(self) -> None:  # noqa: B027  # most need nothing
        """Sends what is still to be sent. Called only after `open` has succeeded."""

    def abandon(self) -> None:  # noqa: B027  # most need nothing
        """Lets go of what would hold up the end of the process, as `close` was not done in time.

        Called in another thread than the rest, in the midst of whatever that does.
        """
