"""Scored groups off the wire: checked, and in the learner's own terms."""

import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import numpy as np

from routershift import wire
from routershift.v1 import trajectory_pb2 as pb
from services.learner.data import shares
from services.learner.data.batch import Group, Sample
from shared.errors import CorruptDataError, UnavailableError
from shared.payloads.bulk import Bulk
from shared.streams.consumer import Entry, parse_group

_MOST_WEIGHT = 100  # far above what `EarlyStop` gives


def whole_message(entry: Entry, bulk: Bulk | None) -> pb.TrajectoryGroup:
    """The message of an entry with its arrays, wherever they lie. Raises as `decode_group`."""
    message = parse_group(entry)
    if not entry.reference and not any(trajectory.HasField("payload") for trajectory in message.trajectories):
        return message
    if bulk is None:
        raise UnavailableError(
            f"group {entry.group} has its arrays in a payload store, and payloads.store is 'stream'; set it back"
        )
    bulk.attach(message, entry.reference)
    return message


@dataclass(frozen=True, slots=True)
class Scored:
    """A group with its entry, and what the records say of it."""

    entry: Entry
    group: Group
    oldest_version: int
    correct: float  # share of the samples
    generated_at: datetime
    received_at: float = field(default_factory=time.time)  # seconds since 1970

    @property
    def rewards(self) -> list[float]:
        return [sample.reward for sample in self.group.samples]


def without_arrays(scored: Scored) -> Scored:
    """The group with lengths in place of its arrays, where every rank can read its own rows from the payload store."""
    if not scored.entry.reference:
        return scored
    envelopes = parse_group(scored.entry).trajectories
    samples = tuple(
        shares.without_arrays(sample, envelope)
        for sample, envelope in zip(scored.group.samples, envelopes, strict=True)
    )
    return replace(scored, group=replace(scored.group, samples=samples))


def decode_group(entry: Entry, bulk: Bulk | None = None) -> Scored:
    """The group of an entry, with arrays from the payload store where it refers to it; waits for that.

    Args:
        bulk: the payload store.

    Raises:
        CorruptDataError: no message, a sample without a reward, another number of samples than prompted.
        PayloadError, UnavailableError: as `Bulk.attach`.
    """
    message = whole_message(entry, bulk)
    weight = _weight(message)
    found, wanted = len(message.trajectories), entry.trajectories
    if found != wanted if weight else not 0 < found < wanted:
        expected = wanted if weight else f"1 to {wanted - 1}, as it was stopped early"
        raise CorruptDataError(f"group has {found} trajectories; expected {expected}")
    prompt_ids = np.array(message.prompt.token_ids, dtype=np.int64)
    if prompt_ids.size == 0:
        raise CorruptDataError("group.prompt.token_ids is empty; generation fills it in")
    if (largest := prompt_ids.max()) > np.iinfo(np.int32).max:
        raise CorruptDataError(f"group.prompt.token_ids holds {largest}; expected ids below 2^31")
    try:
        generated_at = message.generated_at.ToDatetime(UTC)
    except (OverflowError, ValueError) as error:
        raise CorruptDataError(f"group.generated_at is no time: {error}") from None
    samples = []
    for trajectory in message.trajectories:
        if trajectory.score.outcome != pb.OUTCOME_SCORED or not trajectory.score.HasField("reward"):
            outcome = trajectory.score.outcome
            name = pb.Outcome.Name(outcome) if outcome in pb.Outcome.values() else outcome
            raise CorruptDataError(f"sample {trajectory.id.sample} is {name}; only scored samples are trained on")
        if not np.isfinite(reward := trajectory.score.reward):
            raise CorruptDataError(f"sample {trajectory.id.sample} has reward {reward}; expected a finite number")
        decoded = wire.decode_trajectory(trajectory)
        if decoded.completion.token_ids.size == 0:
            raise CorruptDataError(f"sample {trajectory.id.sample} has no sampled tokens; expected at least one")
        samples.append(Sample(prompt_ids.astype(np.int32), decoded, reward))
    oldest = wire.oldest_version(message.trajectories)
    return Scored(
        entry=entry,
        group=Group(entry.group, tuple(samples), weight),
        oldest_version=oldest if oldest is not None else 0,
        correct=sum(t.score.parts.get("correct", 0.0) for t in message.trajectories) / len(samples),
        generated_at=generated_at,
    )


def _weight(message: pb.TrajectoryGroup) -> float:
    """Raises CorruptDataError for a weight that no group has."""
    weight: float = message.weight if message.HasField("weight") else 1.0
    if weight and not 1 <= weight <= _MOST_WEIGHT:
        raise CorruptDataError(f"group.weight is {weight}; expected 0, or 1 to {_MOST_WEIGHT}")
    return weight
