"""Where a write lies before it is acknowledged: `redis.durability`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from shared.errors import PreconditionError
from shared.settings import RedisSettings
from shared.streams.releases import Release


class LaggingError(RedisError):
    """A write was done, and is not yet where it has to be."""


@dataclass(frozen=True, slots=True)
class Durable:
    """What a server is asked after a write."""

    replicas: int  # that have it in memory; 0: it is not asked for any
    fsync: bool  # whether the primary has it on disk
    milliseconds: int  # for an answer

    @classmethod
    def of(cls, settings: RedisSettings, release: Release) -> "Durable":
        """That of a server of this release, whose WAITAOF is not asked for replicas: they answer once a second.

        Raises:
            PreconditionError: it cannot be asked for that.
        """
        replicas = settings.durable_replicas if settings.durability == "replicas" else 0
        if not release.has_functions or not (replicas or release.has_waitaof):
            raise PreconditionError(
                f"redis.durability is {settings.durability}, and {release} cannot be asked for it: fsync needs Redis "
                "7.2 or Valkey, replicas Redis 7; set it to none, and `appendfsync always`"
            )
        return cls(replicas, release.has_waitaof, round(1000 * settings.timeout_seconds / 2))

    @property
    def commands(self) -> list[tuple[str | int, ...]]:
        """To be sent after a write, on its connection."""
        asked: list[tuple[str | int, ...]] = []
        if self.replicas:
            asked.append(("WAIT", self.replicas, self.milliseconds))
        if self.fsync:
            asked.append(("WAITAOF", 1, 0, self.milliseconds))
        return asked

    def check(self, answers: Sequence[Any]) -> None:
        """Raises LaggingError where the answers to `commands` say that the write is not everywhere in time."""
        if self.replicas and answers[0] < self.replicas:
            raise LaggingError(f"{answers[0]} of {self.replicas} replicas of Redis have what it did")
        if self.fsync and not answers[-1][0]:
            raise LaggingError("Redis has not on its disk what it did")
