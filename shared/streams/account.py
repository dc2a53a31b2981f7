"""The account of a run: what has become of every trajectory, at one moment."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from shared.streams.keys import STAGES


@dataclass(frozen=True, slots=True)
class Ledger:
    """Counts of trajectories at one moment. `prompted = trained + dropped + dead + in_flight`, always.

    `stages` is what is in flight by how far it has come: prompted, generated or scored.
    """

    prompted: int
    trained: int
    dropped: Mapping[str, int]
    dead: Mapping[str, int]
    in_flight: int
    stages: Mapping[str, int]

    @property
    def balanced(self) -> bool:
        ended = self.trained + sum(self.dropped.values()) + sum(self.dead.values())
        return self.prompted == ended + self.in_flight


@dataclass(frozen=True, slots=True)
class Account:
    """Everything that is counted, at one moment."""

    ledger: Ledger
    in_flight: Mapping[str, tuple[int, str]]  # group: its trajectories and its stage
    tickets: frozenset[str]
    bytes: Mapping[str, int]  # by stream, the dead letters included
    last_end: str  # id of the newest end; '' for none


def decode_account(
    counts: Sequence[bytes],
    in_flight: Sequence[bytes],
    tickets: Sequence[bytes],
    sizes: Sequence[bytes],
    last_end: bytes,
) -> Account:
    """From the answer of account.lua."""
    groups = {group: _in_flight(value) for group, value in _pairs(in_flight)}
    return Account(
        ledger=_ledger({field: int(value) for field, value in _pairs(counts)}, groups),
        in_flight=groups,
        tickets=frozenset(group.decode() for group in tickets),
        bytes={stream: int(value) for stream, value in _pairs(sizes)},
        last_end=last_end.decode(),
    )


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[str, str]]:
    """Pairs of a hash as a script answers it: field, value, field, value."""
    yield from zip((f.decode() for f in flat[::2]), (v.decode() for v in flat[1::2]), strict=True)


def _in_flight(value: str) -> tuple[int, str]:
    trajectories, _, stage = value.partition(" ")
    return int(trajectories), stage


def _ledger(fields: Mapping[str, int], groups: Mapping[str, tuple[int, str]]) -> Ledger:
    def by_reason(kind: str) -> dict[str, int]:
        return {name.partition(":")[2]: n for name, n in sorted(fields.items()) if n and name.startswith(f"{kind}:")}

    stages = dict.fromkeys(STAGES.values(), 0)
    for trajectories, stage in groups.values():
        stages[stage] += trajectories
    return Ledger(
        prompted=fields.get("prompted", 0),
        trained=fields.get("trained", 0),
        dropped=by_reason("dropped"),
        dead=by_reason("dead"),
        in_flight=sum(stages.values()),
        stages=stages,
    )
