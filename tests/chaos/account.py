"""The account of a run as an outsider keeps it: from the keys in Redis and from the checkpoints, by no code of theirs.

Prompts are numbered, so whatever was admitted must be found: in flight and on one stream, or ended and counted.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

# The streams at each stage of a group. Each step from one stage to the next is a write that Redis has acknowledged.
STAGES = (("prompts", "episodes"), ("rollouts",), ("scored",))
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Account:
    """All of one moment."""

    admitted: int  # prompts; their numbers are 0 to admitted - 1
    ledger: Mapping[str, int]
    in_flight: Mapping[str, int]  # group to its trajectories
    streams: Sequence[Sequence[str]]  # the group of each entry, by stage
    ended: Sequence[tuple[str, str]]  # group, how

    @property
    def acknowledged(self) -> int:
        """Writes that brought the groups where they are."""
        return sum(rank + 1 for rank in self.ranks().values())

    @property
    def trained(self) -> list[str]:
        return [group for group, how in self.ended if how == "trained"]

    def ranks(self) -> dict[str, int]:
        """How far each group has come: 0 prompted to 3 ended."""
        return {g: rank for rank, groups in enumerate((*self.streams, [g for g, _ in self.ended])) for g in groups}

    def lost(self, before: "Account") -> int:
        """Acknowledged writes of `before` that are not in this account."""
        now = self.ranks()
        return sum(max(0, rank - now.get(group, -1)) for group, rank in before.ranks().items())

    def findings(self) -> list[str]:
        """What does not hold, one line each."""
        found: list[str] = []
        in_flight = sum(self.in_flight.values())
        if self.ledger.get("prompted", 0) != in_flight + sum(
            n for name, n in self.ledger.items() if name != "prompted"
        ):
            found.append(f"the ledger {dict(self.ledger)} does not balance with {in_flight} in flight")
        places = Counter(group for groups in self.streams for group in groups)
        ends = Counter(group for group, _ in self.ended)
        known = sorted(places.keys() | ends.keys() | self.in_flight.keys())
        states = {group: (places[group], ends[group], int(group in self.in_flight)) for group in known}
        odd = {group: state for group, state in states.items() if state not in ((1, 0, 1), (0, 1, 0))}
        for group, (entries, times, flying) in list(odd.items())[:_SHOWN]:
            found.append(f"group {group}: entries {entries}, ends {times}, in flight {flying}; one of {len(odd)} such")
        if missing := self.missing():
            found.append(f"{len(missing)} groups were admitted, and are nowhere: {', '.join(missing[:_SHOWN])}")
        return found

    def missing(self) -> list[str]:
        """Groups that were admitted and of which nothing is known any more."""
        known = self.ranks().keys() | self.in_flight.keys()
        return [name for i in range(self.admitted) if (name := f"{i:08d}/0") not in known]


async def read(redis: Redis, run: str) -> Account:
    """In one transaction."""
    keys = [f"{{{run}}}:{name}" for stage in STAGES for name in stage]
    async with redis.pipeline(transaction=True) as pipe:
        pipe.hget(f"{{{run}}}:progress", "prompts")
        pipe.hgetall(f"{{{run}}}:ledger")
        pipe.hgetall(f"{{{run}}}:in_flight")
        for key in (*keys, f"{{{run}}}:ended"):
            pipe.xrange(key)
        answers: Any = await pipe.execute()
    admitted, ledger, in_flight, *entries, ended = answers
    groups = iter([[fields[b"g"].decode() for _, fields in found] for found in entries])
    return Account(
        admitted=int(admitted or 0),
        ledger={name.decode(): int(n) for name, n in ledger.items()},
        in_flight={group.decode(): int(value.split()[0]) for group, value in in_flight.items()},
        streams=[[group for _ in stage for group in next(groups)] for stage in STAGES],
        ended=[(fields[b"g"].decode(), fields[b"e"].decode()) for _, fields in ended],
    )


def twice(groups: Sequence[str]) -> list[str]:
    return [group for group, times in Counter(groups).items() if times > 1]


def last_step(checkpoints: Path) -> int:
    """The step of the newest checkpoint; 0 where there is none."""
    return max((int(path.name.split("-")[1]) for path in checkpoints.glob("step-*")), default=0)


def rewards(folder: Path) -> list[float]:
    """The mean reward of each step, in order; of a step that was done twice, because of a crash, the last."""
    by_step: dict[int, float] = {}
    for line in (folder / "learner.jsonl").read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # a process was killed while it wrote
        by_step[record["step"]] = record["reward_mean"]
    return [by_step[step] for step in sorted(by_step)]
