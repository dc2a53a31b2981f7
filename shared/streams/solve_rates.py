"""How well each problem is solved: written by who judges groups, read by the curriculum."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from shared.streams.keys import Keys
from shared.streams.scripts import Script

_LEAST_WEIGHT = 0.25  # of the newest group in the running rate, so that it follows the policy
_PAGE = 1000  # problems that one call reads or writes
_LONGEST_NAME = 64  # of a problem in Redis; a longer id is known by its digest


@dataclass(frozen=True, slots=True)
class SolveRate:
    """What is known of one problem."""

    groups: int  # judged so far
    rate: float  # running share of responses that solve it, 0 to 1
    equal: bool  # whether the rewards of the last group were equal, so that it had nothing to teach


class SolveRates:
    """The solve rates of a run, in Redis, where they survive restarts as the ledger does.

    They steer and count nothing: a record that a crash loses is made up for by the next group of the problem.
    """

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._key = keys.solve_rates
        self._solve = Script(redis, "solve")

    async def open(self, problems: int) -> None:
        """Asks whoever judges for solve rates of so many problems, at most. Until then none are kept."""
        await self._redis.hset(self._key, "", str(problems))

    async def record(self, problem_id: str, share: float, equal: bool) -> None:
        """Adds a group.

        Args:
            problem_id: "" is nobody.
            share: of its responses that solve the problem, 0 to 1.
            equal: whether all of its rewards are equal.
        """
        if problem_id:
            await self._solve(keys=[self._key], args=[_name(problem_id), share, int(equal), _LEAST_WEIGHT])

    async def record_scores(self, problem_id: str, scores: Sequence[pb.Score]) -> None:
        """Adds a group by the scores of its responses, which all have a reward.

        The share of right responses counts; where nobody says which are right, the mean reward, cut to 0 to 1.
        """
        share = fmean(score.parts.get("correct", score.reward) for score in scores)
        rewards = [score.reward for score in scores]
        # Equal but for rounding: the learner has nothing to learn from them.
        equal = math.isclose(min(rewards), max(rewards), rel_tol=1e-9, abs_tol=1e-12)
        await self.record(problem_id, min(max(share, 0.0), 1.0), equal)

    async def read(self, problem_ids: Sequence[str]) -> list[SolveRate | None]:
        """What is known of each; None of one that was never judged."""
        found: Any = await self._redis.hmget(self._key, [_name(each) for each in problem_ids])
        return [
            _decode(value) if value and problem_id else None
            for value, problem_id in zip(found, problem_ids, strict=True)
        ]

    async def dump(self) -> dict[str, str]:
        """All records by problem, as `restore` takes them. What changes meanwhile is there as it was or as it is."""
        return {
            name.decode(): value.decode()
            async for name, value in self._redis.hscan_iter(self._key, count=_PAGE)
            if name  # the number of problems is for the strategy of the recipe to say
        }

    async def restore(self, records: Mapping[str, str]) -> None:
        """Puts records back, in the place of others of these problems."""
        pairs = list(records.items())
        for first in range(0, len(pairs), _PAGE):
            await self._redis.hset(self._key, mapping=dict(pairs[first : first + _PAGE]))


def _name(problem_id: str) -> str:
    if len(problem_id) <= _LONGEST_NAME:
        return problem_id
    return hashlib.blake2b(problem_id.encode(), digest_size=16).hexdigest()


def _decode(value: bytes) -> SolveRate:
    groups, rate, equal = value.split()
    return SolveRate(int(groups), float(rate), equal == b"1")
