"""Names of a run's keys in Redis. They share a hash tag, so that one transaction may touch them all."""

from dataclasses import dataclass
from enum import StrEnum


class Stream(StrEnum):
    """The streams between services. Each is read by one consumer group, named after the reader."""

    PROMPTS = "prompts"
    EPISODES = "episodes"  # prompts of an environment
    ROLLOUTS = "rollouts"
    SCORED = "scored"


READERS = {
    Stream.PROMPTS: "generation",
    Stream.EPISODES: "environments",
    Stream.ROLLOUTS: "reward",
    Stream.SCORED: "learner",
}

# How far a group has come whose entry is on the stream.
STAGES = {
    Stream.PROMPTS: "prompted",
    Stream.EPISODES: "prompted",
    Stream.ROLLOUTS: "generated",
    Stream.SCORED: "scored",
}


def streams_of(stage: str) -> list[Stream]:
    """The streams with groups of this stage. One limit, `streams.max_bytes`, is for all of them together."""
    return [stream for stream in Stream if STAGES[stream] == stage]


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
        """Hash of group to its number of trajectories and its stage, as in `8 scored`, until it ends."""
        return self("in_flight")

    @property
    def ended(self) -> str:
        """Stream of the ends of groups: g is the group, n its trajectories, e the ledger's field, s the step where it
        was trained on. A dead letter that is replayed takes its end back with `replayed:REASON`.
        """
        return self("ended")

    def settlement(self, stream: Stream, entry_id: str) -> str:
        """Token of the settlement of an entry; it expires."""
        return self(f"settled:{stream}:{entry_id}")

    def waiting(self, stream: str) -> str:
        """There while a producer waits for room on a stream, or in the store `payloads`: the bytes that it needs. It
        expires.
        """
        return self(f"waiting:{stream}")

    def blob(self, blob_id: str) -> str:
        """A payload too large for an entry: a string, or a hash of its chunks."""
        return self(f"blob:{blob_id}")

    @property
    def payloads(self) -> str:
        """Hash of the keys of the payload store that entries and dead letters refer to, each with its group."""
        return self("payloads")

    @property
    def ledger(self) -> str:
        """Hash of counts of trajectories: prompted, trained, dropped:REASON, dead:REASON."""
        return self("ledger")

    @property
    def bytes(self) -> str:
        """Hash of stream to the bytes of its payloads, those in blobs included."""
        return self("bytes")

    @property
    def fences(self) -> str:
        """Hash of role to the number of its newest holder."""
        return self("fences")

    @property
    def solve_rates(self) -> str:
        """Hash of problem to how it is solved; '' is the number of problems that are kept."""
        return self("solve_rates")

    @property
    def progress(self) -> str:
        """Hash: what the run has reached, written by learner and curriculum."""
        return self("progress")
