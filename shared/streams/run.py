"""A run as Redis knows it: admission of prompts, tickets, the ledger, weights and progress."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from routershift.v1 import trajectory_pb2 as pb
from shared.settings import StreamSettings
from shared.streams.consumer import Consumer
from shared.streams.keys import READERS, Keys, Stream
from shared.streams.scripts import source

# The learner's phase, in the run's progress; admit.lua knows the last.
TRAINING, PAUSED, FINISHED = "training", "paused", "finished"

# Announcements are not data: only the newest is ever loaded.
_WEIGHTS_KEPT = 16


@dataclass(frozen=True, slots=True)
class Ledger:
    """Counts of trajectories at one moment. `prompted = trained + dropped + dead + in_flight`, always."""

    prompted: int
    trained: int
    dropped: Mapping[str, int]
    dead: Mapping[str, int]
    in_flight: int

    @property
    def balanced(self) -> bool:
        ended = self.trained + sum(self.dropped.values()) + sum(self.dead.values())
        return self.prompted == ended + self.in_flight


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a stream holds, entries being worked on included."""

    entries: int
    bytes: int


class Run:
    """The shared state of a run. Every service has one."""

    def __init__(self, redis: Redis, run_id: str, settings: StreamSettings) -> None:
        self._redis = redis
        self.keys = Keys(run_id)
        self._settings = settings
        self._admit = redis.register_script(source("admit.lua"))

    async def open(self) -> None:
        """Creates every stream's group, so that no entry can come before its reader is known."""
        for stream in READERS:
            await self.consumer(stream).open()

    def consumer(self, stream: Stream) -> Consumer:
        """A reader of this stream."""
        return Consumer(self._redis, self.keys, stream, self._settings)

    async def next_prompt(self) -> int:
        """Index of the prompt to admit next; survives a restart of the curriculum."""
        return int(await self._redis.hget(self.keys.progress, "prompts") or 0)

    async def admit(self, index: int, prompt: pb.Prompt, tickets: int) -> str:
        """Puts a prompt on its stream if a ticket is free: the answers are those of admit.lua."""
        k = self.keys
        try:
            answer = await self._admit(
                keys=[k(Stream.PROMPTS), k.tickets, k.in_flight, k.ledger, k.bytes, k.progress],
                args=[
                    index, tickets, self._settings.max_bytes, Stream.PROMPTS,
                    group_name(prompt), prompt.sampling.n, prompt.SerializeToString(),
                ],
            )  # fmt: skip
        except OutOfMemoryError:
            return "full"
        return str(answer.decode())

    async def return_tickets(self, groups: list[str]) -> None:
        """Trained-on groups make room for new prompts before their checkpoint is durable."""
        if groups:
            await self._redis.srem(self.keys.tickets, *groups)

    async def ledger(self) -> Ledger:
        """The account at one moment, read in one transaction."""
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hgetall(self.keys.ledger)
            pipe.hvals(self.keys.in_flight)
            counts, in_flight = await pipe.execute()
        fields = {name.decode(): int(value) for name, value in counts.items()}

        def by_reason(kind: str) -> dict[str, int]:
            return {name.partition(":")[2]: n for name, n in sorted(fields.items()) if name.startswith(f"{kind}:")}

        return Ledger(
            prompted=fields.get("prompted", 0),
            trained=fields.get("trained", 0),
            dropped=by_reason("dropped"),
            dead=by_reason("dead"),
            in_flight=sum(map(int, in_flight)),
        )

    async def backlog(self) -> dict[Stream, Backlog]:
        async with self._redis.pipeline(transaction=True) as pipe:
            for stream in Stream:
                pipe.xlen(self.keys(stream))
            pipe.hmget(self.keys.bytes, list(Stream))
            *lengths, sizes = await pipe.execute()
        return {s: Backlog(n, int(b or 0)) for s, n, b in zip(Stream, lengths, sizes, strict=True)}

    async def dead_letters(self) -> int:
        return int(await self._redis.xlen(self.keys.dead))

    async def tickets_held(self) -> int:
        return int(await self._redis.scard(self.keys.tickets))

    async def announce(self, manifest: pb.WeightsManifest) -> None:
        """Tells every generation replica of a published version."""
        await self._redis.xadd(self.keys.weights, {"p": manifest.SerializeToString()}, maxlen=_WEIGHTS_KEPT)

    async def newest_weights(self) -> pb.WeightsManifest | None:
        """The last version announced; None before the first."""
        entries: Any = await self._redis.xrevrange(self.keys.weights, count=1)
        return pb.WeightsManifest.FromString(entries[0][1][b"p"]) if entries else None

    async def progress(self) -> dict[str, str]:
        raw: Any = await self._redis.hgetall(self.keys.progress)
        return {name.decode(): value.decode() for name, value in raw.items()}

    async def report_progress(self, **values: str | int | float) -> None:
        mapping: dict[Any, Any] = dict(values)
        await self._redis.hset(self.keys.progress, mapping=mapping)


def group_name(prompt: pb.Prompt) -> str:
    """Names a trajectory group within its run: the first parts of the TrajectoryId of each of its samples."""
    return f"{prompt.prompt_id}/{prompt.attempt}"
