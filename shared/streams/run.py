"""A run as Redis knows it: admission of prompts, tickets, the account, weights and progress."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from routershift.v1 import trajectory_pb2 as pb
from shared.errors import PreconditionError
from shared.payloads.bulk import Bulk
from shared.payloads.settings import PayloadSettings
from shared.settings import StreamSettings
from shared.streams.account import Account, Ledger, decode_account
from shared.streams.capacity import check_memory
from shared.streams.consumer import Consumer
from shared.streams.dead import DeadLetters
from shared.streams.keys import READERS, STAGES, Keys, Stream, streams_of
from shared.streams.lease import Lease
from shared.streams.payloads import Payloads
from shared.streams.progress import Progress
from shared.streams.scripts import Script
from shared.streams.solve_rates import SolveRates
from shared.streams.sweep import Sweep

# The learner's phase, in the run's progress; admit.lua knows the last.
TRAINING, PAUSED, FINISHED = "training", "paused", "finished"

# Of what a run has in Redis: raised where services of an earlier version would take new entries wrongly.
FORMAT = 1

# Announcements are not data: only the newest is loaded, or the one before where that is damaged.
_WEIGHTS_KEPT = 16

# A replica says this often that it is there, and is forgotten after so much silence.
REPLICA_BEAT_SECONDS = 3.0
_REPLICA_MILLISECONDS = 10_000


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of a Redis server, in bytes."""

    used: int
    limit: int  # maxmemory; 0 for none


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a stream holds, entries being worked on included."""

    entries: int
    bytes: int
    oldest_seconds: float  # age of the oldest entry; 0 for none
    is_used: bool  # whether it has ever held one


@dataclass(frozen=True, slots=True)
class Replica:
    """A process of generation that takes weights over the network."""

    workers: int  # of its engine; each takes all weights
    version: int  # that it serves


class Run:
    """The shared state of a run. Every service has one."""

    def __init__(self, redis: Redis, run_id: str, settings: StreamSettings, bulk: Bulk | None = None) -> None:
        """Args: bulk: the payload store, for a process that writes or reads arrays there."""
        self._redis = redis
        self.bulk = bulk
        self.keys = Keys(run_id)
        self._settings = settings
        self.lease = Lease(redis, self.keys, settings.lease_seconds)
        self._admit, self._announce, self._report, self._release = (
            Script(redis, name, lambda: self.lease.fence) for name in ("admit", "announce", "report", "release")
        )
        self._account = Script(redis, "account")
        self._backlog = Script(redis, "backlog")
        self._newest = Script(redis, "newest")
        self._replicas = Script(redis, "replicas")
        self._payloads = Payloads(redis, self.keys, settings)
        self._newest_id, self._newest_weights = b"", pb.WeightsManifest()

    async def open(self) -> None:
        """Creates every stream's group, so that no entry can come before its reader is known.

        Raises:
            PreconditionError: this Redis would evict the run's data, or has less memory than its streams may need;
                or the payload store is not what it was, or cannot be written to.
        """
        if self.bulk:
            await self.bulk.open(self.payloads_referred_to)
        for stream in READERS:
            await self.consumer(stream).open()
        await self._check_memory()  # of the node that has the run's keys, where there are several

    async def claim_format(self) -> None:
        """Says in which format this version goes on with the run; for the holder of a lease, before it reads or writes.

        Raises:
            PreconditionError: a later version has gone on with it.
        """
        written = (await self.progress()).format
        if written is not None and written > FORMAT:
            raise PreconditionError(
                f"run {self.keys.run} has format {written} in Redis, and this version reads up to {FORMAT}: a later "
                "one has gone on with it; use that, or bring back a backup from before"
            )
        if written != FORMAT:
            await self.report_progress(Progress(format=FORMAT))

    def consumer(self, stream: Stream) -> Consumer:
        """A reader of this stream."""
        return Consumer(self._redis, self.keys, stream, self._settings, lambda: self.lease.fence, self.bulk)

    @property
    def solve_rates(self) -> SolveRates:
        """How well each problem is solved."""
        return SolveRates(self._redis, self.keys)

    @property
    def dead(self) -> DeadLetters:
        """What could not be used, to be looked at, replayed or purged."""
        return DeadLetters(self._redis, self.keys, self._settings)

    async def next_prompt(self) -> int:
        """Index of the prompt to admit next; survives a restart of the curriculum."""
        return (await self.progress()).prompts or 0

    async def admit(
        self,
        index: int,
        prompt: pb.Prompt,
        tickets: int,
        selection: Mapping[str, Any] | None = None,
        traceparent: str = "",
    ) -> str:
        """Puts a prompt on its stream if a ticket is free: the answers are those of admit.lua.

        One with an environment goes to the stream of episodes.

        Args:
            selection: what becomes `Progress.selection` in the same transaction.
            traceparent: goes with the group through all streams; '' where its trace is not recorded.
        """
        k, answer = self.keys, b"expired"
        stream = Stream.EPISODES if prompt.environment else Stream.PROMPTS
        stage = STAGES[stream]
        while answer == b"expired":
            placed = await self._payloads.place(prompt.SerializeToString())
            answer = await self._payloads.run(
                self._admit,
                keys=[
                    k(stream), k.tickets, k.in_flight, k.ledger, k.bytes, k.progress, k.blob(placed.blob_id),
                ],
                arguments=[
                    index, tickets, self._settings.max_bytes, stream,
                    group_name(prompt), prompt.sampling.n, stage, *placed.arguments,
                    "" if selection is None else json.dumps(selection), traceparent, *streams_of(stage),
                ],
                placed=placed,
            )  # fmt: skip
        return answer.decode()

    async def return_tickets(self, groups: list[str]) -> None:
        """Trained-on groups make room for new prompts before their checkpoint is durable."""
        if groups:
            await self._release(keys=[self.keys.tickets], args=groups)

    async def ledger(self) -> Ledger:
        """The counts of the account."""
        return (await self.account()).ledger

    async def account(self) -> Account:
        """The account at one moment, read in one transaction."""
        k = self.keys
        answer = await self._account(keys=[k.ledger, k.in_flight, k.tickets, k.bytes, k.ended], args=[])
        return decode_account(*answer)

    async def backlog(self) -> dict[Stream, Backlog]:
        """What every stream holds, at one moment."""
        answer = await self._backlog(keys=[self.keys.bytes, *map(self.keys, Stream)], args=list(Stream))
        return {
            stream: Backlog(entries, size, age / 1000, bool(used))
            for stream, (entries, size, age, used) in zip(Stream, answer, strict=True)
        }

    def sweep(self, settings: PayloadSettings) -> Sweep | None:
        """What clears the payload store of orphans; None without one."""
        return Sweep(self._redis, self.keys, self.bulk, settings) if self.bulk else None

    async def payloads_referred_to(self) -> int:
        """How many objects of the payload store entries and dead letters refer to."""
        return int(await self._redis.hlen(self.keys.payloads))

    async def dead_letters(self) -> int:
        return int(await self._redis.xlen(self.keys.dead))

    async def tickets_held(self) -> int:
        return int(await self._redis.scard(self.keys.tickets))

    async def announce(self, manifest: pb.WeightsManifest) -> None:
        """Tells every generation replica of a published version."""
        await self._announce(keys=[self.keys.weights], args=[manifest.SerializeToString(), _WEIGHTS_KEPT])

    async def newest_weights(self) -> pb.WeightsManifest | None:
        """The last version announced; None before the first. Asked again, it costs next to nothing."""
        answer: list[bytes] = await self._newest(keys=[self.keys.weights], args=[self._newest_id])
        if not answer:
            return None
        if len(answer) > 1:
            self._newest_id, self._newest_weights = answer[0], pb.WeightsManifest.FromString(answer[1])
        return self._newest_weights

    async def announced_weights(self) -> list[pb.WeightsManifest]:
        """The versions announced, as far as they are remembered: the last announcement of each, newest first."""
        entries: Any = await self._redis.xrevrange(self.keys.weights, count=_WEIGHTS_KEPT)
        manifests: dict[int, pb.WeightsManifest] = {}
        for _, fields in entries:
            manifest = pb.WeightsManifest.FromString(fields[b"p"])
            manifests.setdefault(manifest.version, manifest)
        return list(manifests.values())

    async def register_replica(self, name: str, workers: int, version: int) -> None:
        """Says that a replica of generation is there, for the next seconds: see `REPLICA_BEAT_SECONDS`.

        Args:
            name: unique to the process, so that a replica which starts again is another one.
            workers: processes of its engine, each of which takes all weights.
            version: that it serves.
        """
        await self._replicas(keys=[self.keys("replicas")], args=[name, workers, version, _REPLICA_MILLISECONDS])

    async def remove_replica(self, name: str) -> None:
        """Says that a replica ends, so that nobody waits for it."""
        await self._replicas(keys=[self.keys("replicas")], args=[name, 0, 0, 0])

    async def replicas(self) -> dict[str, Replica]:
        """The replicas of generation that take weights over the network, by name."""
        answer = await self._replicas(keys=[self.keys("replicas")], args=[])
        return {name.decode(): Replica(workers, version) for name, workers, version in sorted(answer)}

    async def progress(self) -> Progress:
        """How far the run has come."""
        raw: Any = await self._redis.hgetall(self.keys.progress)
        return Progress.of({name.decode(): value.decode() for name, value in raw.items()})

    async def report_progress(self, changes: Progress) -> None:
        """Writes the fields that are not None."""
        fields = [part for pair in changes.as_fields().items() for part in pair]
        await self._report(keys=[self.keys.progress], args=fields)

    async def has_waiting_producer(self, stream: str) -> bool:
        """Whether a producer waits for room on this stream, or in the store `payloads`."""
        return await self._redis.get(self.keys.waiting(stream)) is not None

    async def holders(self) -> dict[str, int]:
        """How many processes have held each role of the run, one after the other."""
        raw: Any = await self._redis.hgetall(self.keys.fences)
        return {role.decode(): int(number) for role, number in raw.items()}

    async def memory(self) -> Memory:
        """Memory of the Redis that holds the run."""
        info = await self._redis.info("memory")
        return Memory(int(info["used_memory"]), int(info["maxmemory"]))

    async def _check_memory(self) -> None:
        info = await self._redis.info("memory")
        limit, policy = int(info["maxmemory"]), info["maxmemory_policy"]
        if not limit:
            return
        if policy != "noeviction":
            raise PreconditionError(
                f"Redis has maxmemory-policy {policy} and would evict data of the run; set it to noeviction"
            )
        check_memory(self._settings, limit)


def group_name(prompt: pb.Prompt) -> str:
    """Names a trajectory group within its run: the first parts of the TrajectoryId of each of its samples."""
    return f"{prompt.prompt_id}/{prompt.attempt}"
