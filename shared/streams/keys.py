"""Names of a run's keys in Redis. They share a hash tag, so that one transaction may touch them all."""

from dataclasses import dataclass
from enum import StrEnum


class Stream(StrEnum):
    """The streams between services. Each is read by one consumer group, named after the reader."""

    PROMPTS = "prompts"
    ROLLOUTS = "rollouts"
    SCORED = "scored"


READERS = {Stream.PROMPTS: "generation", Stream.ROLLOUTS: "reward", Stream.SCORED: "learner"}


@dataclass(frozen=True, slots=True)
class Keys:
    run: str

    def __call__(self, name: str) -> str:
        return f"{{{self.run}}}:{name}"

    @property
    def dead(self) -> str:
        """Stream of DeadLetter messages."""
        return self("dead")

    @property
    def weights(self) -> str:
        """Stream of WeightsManifest messages; only the newest matters."""
        return self("weights")

    @property
    def tickets(self) -> str:
        """Set of the groups that hold a ticket."""
        return self("tickets")

    @property
    def in_flight(self) -> str:
        """Hash of group to its number of trajectories, from prompt to the end of its life."""
        return self("in_flight")

    @property
    def ledger(self) -> str:
        """Hash of counts of trajectories: prompted, trained, dropped:REASON, dead:REASON."""
        return self("ledger")

    @property
    def bytes(self) -> str:
        """Hash of stream to the bytes of its payloads."""
        return self("bytes")

    @property
    def progress(self) -> str:
        """Hash: what the run has reached, written by learner and curriculum."""
        return self("progress")
