"""The stream layer against a model of it, on the real Redis, in histories that hypothesis makes up."""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from hypothesis.strategies import booleans, integers, sampled_from

from routershift.v1 import trajectory_pb2 as pb
from shared.settings import RedisSettings, StreamSettings
from shared.streams.audit import audit
from shared.streams.connection import connect
from shared.streams.consumer import Consumer, End, Entry
from shared.streams.keys import READERS, STAGES, Stream
from shared.streams.run import Run

T = TypeVar("T")

GROUP = 3
TICKETS = 6
CHUNK = 1024
NEXT = {
    Stream.PROMPTS: (Stream.ROLLOUTS,),
    Stream.EPISODES: (Stream.ROLLOUTS, Stream.SCORED),
    Stream.ROLLOUTS: (Stream.SCORED,),
}
PICK = integers(0, 1 << 16)

# Everything is idle at once: a reader takes over what others hold, and both settle it.
SETTINGS = StreamSettings(
    block_seconds=0.001, idle_seconds=0.001, max_deliveries=4, inline_bytes=CHUNK // 2, max_entry_bytes=CHUNK
)


class Transitions(RuleBasedStateMachine):
    """Groups by what the model knows of them: the stream they are on, or how they ended."""

    url = ""
    runs = 0

    @initialize()
    def start(self) -> None:
        Transitions.runs += 1
        self.loop = asyncio.new_event_loop()
        self.redis = self.do(connect(RedisSettings(url=self.url)))
        self.run = Run(self.redis, f"transitions-{self.runs}", SETTINGS)
        self.do(self.run.open())
        self.where: dict[str, Stream] = {}  # in flight
        self.payloads: dict[str, bytes] = {}  # of those that were handed over
        self.tickets: set[str] = set()
        self.ended: Counter[str] = Counter()  # trajectories by field
        self.trained: dict[str, int] = {}
        self.letters: dict[str, str] = {}  # dead letter: group
        self.readers: dict[tuple[Stream, str], Consumer] = {}
        self.held: list[tuple[Consumer, Stream, Entry]] = []
        self.settled: set[tuple[Stream, str]] = set()
        self.admitted = 0

    def do(self, work: Awaitable[T]) -> T:
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.do(self.redis.aclose())
        self.loop.close()

    @rule(played=booleans())
    def admit(self, played: bool) -> None:
        """Args: played: whether the prompt has an environment."""
        answer = self.do(self.run.admit(self.admitted, self._prompt(self.admitted, played), TICKETS))
        assert answer == ("tickets" if len(self.tickets) >= TICKETS else "ok")
        if answer == "ok":
            group = f"{self.admitted:08d}/0"
            self.where[group] = Stream.EPISODES if played else Stream.PROMPTS
            self.tickets.add(group)
            self.admitted += 1

    @precondition(lambda self: self.admitted)
    @rule(pick=PICK)
    def admit_again(self, pick: int) -> None:
        index = pick % self.admitted
        assert self.do(self.run.admit(index, self._prompt(index), TICKETS)) == "done"

    @rule(stream=sampled_from(Stream), name=sampled_from("ab"), count=integers(1, 3))
    def read(self, stream: Stream, name: str, count: int) -> None:
        if (stream, name) not in self.readers:
            self.restart(stream, name)
        reader = self.readers[stream, name]
        for entry in self.do(reader.read(count)):
            assert self.where[entry.group] == stream
            assert (stream, entry.id) not in self.settled
            assert entry.trajectories == GROUP
            assert entry.payload == self.payloads.get(entry.group, entry.payload)
            assert entry.size == len(entry.payload)
            self.held.append((reader, stream, entry))
        self._find_buried()

    @rule(stream=sampled_from(Stream), name=sampled_from("ab"))
    def restart(self, stream: Stream, name: str) -> None:
        """What the one before held it still believes to hold."""
        chosen = SETTINGS.model_copy(update={"consumer": name})
        self.readers[stream, name] = Consumer(self.redis, self.run.keys, stream, chosen)

    @rule(stream=sampled_from(Stream))
    def destroy_consumer_group(self, stream: Stream) -> None:
        self.do(self.redis.xgroup_destroy(self.run.keys(stream), READERS[stream]))

    @rule()
    def lose_an_answer(self) -> None:
        self.redis.lost += 1

    @precondition(lambda self: self.held)
    @rule(pick=PICK, size=sampled_from([10, CHUNK - 100, CHUNK * 3 + 1]))
    def hand_over(self, pick: int, size: int) -> None:
        reader, stream, entry = self.held[pick % len(self.held)]
        if stream in NEXT:
            message = pb.TrajectoryGroup(prompt=pb.Prompt(text="x" * size))
            destination = NEXT[stream][pick % len(NEXT[stream])]
            if self._settles(stream, entry, self.do(reader.hand_over(entry, destination, message))):
                self.where[entry.group] = destination
                self.payloads[entry.group] = message.SerializeToString()

    @precondition(lambda self: self.held)
    @rule(pick=PICK, size=sampled_from([1, CHUNK // 4, CHUNK]))
    def pass_on(self, pick: int, size: int) -> None:
        reader, stream, entry = self.held[pick % len(self.held)]
        if stream in NEXT:
            destination = NEXT[stream][pick % len(NEXT[stream])]
            tail = bytes([1 + pick % 255]) * size
            if self._settles(stream, entry, self.do(reader.pass_on(entry, destination, tail))):
                self.where[entry.group] = destination
                self.payloads[entry.group] = entry.payload + tail

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def drop(self, pick: int) -> None:
        reader, stream, entry = self.held[pick % len(self.held)]
        if self._settles(stream, entry, self.do(reader.end(entry, End.dropped("stale")))):
            self._ends(entry.group, "dropped:stale")

    @precondition(lambda self: self.held)
    @rule(pick=PICK, step=integers(1, 99))
    def train(self, pick: int, step: int) -> None:
        reader, stream, entry = self.held[pick % len(self.held)]
        if self._settles(stream, entry, self.do(reader.end(entry, End.trained(step)))):
            self._ends(entry.group, "trained")
            self.trained[entry.group] = step

    @precondition(lambda self: self.held)
    @rule(pick=PICK)
    def bury(self, pick: int) -> None:
        reader, stream, entry = self.held[pick % len(self.held)]
        self._settles(stream, entry, self.do(reader.bury(entry, "bad", "for the test")))
        self._find_buried()

    @precondition(lambda self: self.tickets)
    @rule(pick=PICK)
    def return_ticket(self, pick: int) -> None:
        group = sorted(self.tickets)[pick % len(self.tickets)]
        self.do(self.run.return_tickets([group]))
        self.tickets.discard(group)

    @precondition(lambda self: self.letters)
    @rule(pick=PICK)
    def replay(self, pick: int) -> None:
        letter_id = sorted(self.letters)[pick % len(self.letters)]
        letter = self.do(self.run.dead.get(letter_id))
        assert letter.group == self.letters.pop(letter_id)
        self.do(self.run.dead.replay(letter_id))
        self.ended[f"dead:{letter.reason}"] -= GROUP
        self.where[letter.group] = Stream(letter.stream)
        self.tickets.add(letter.group)

    @precondition(lambda self: self.letters)
    @rule(pick=PICK)
    def purge(self, pick: int) -> None:
        letter_id = sorted(self.letters)[pick % len(self.letters)]
        self.do(self.run.dead.purge(letter_id))
        del self.letters[letter_id]

    @invariant()
    def holds(self) -> None:
        self.do(self._check())

    async def _check(self) -> None:
        account = await self.run.account()
        ledger = account.ledger
        assert ledger.balanced
        assert ledger.prompted == self.admitted * GROUP
        on = Counter(STAGES[stream] for stream in self.where.values())
        assert ledger.stages == {stage: on[stage] * GROUP for stage in STAGES.values()}
        counts = Counter({"trained": ledger.trained})
        counts.update({f"dropped:{reason}": n for reason, n in ledger.dropped.items()})
        counts.update({f"dead:{reason}": n for reason, n in ledger.dead.items()})
        assert +counts == +self.ended
        assert account.tickets == self.tickets
        assert (await audit(self.redis, self.run, lambda: self.trained)).problems == {}
        blobs = set()
        for name in (*Stream, "dead"):
            size = 0
            entries: Any = await self.redis.xrange(self.run.keys(name))
            for _, fields in entries:
                size += int(fields.get(b"z", 0)) + len(fields.get(b"p", b""))
                if b"b" in fields:
                    blobs.add(self.run.keys.blob(fields[b"b"].decode()))
            assert account.bytes.get(name, 0) == size
        # No blob outlives its entry, and none that has one expires.
        keys: Any = await self.redis.keys(self.run.keys.blob("*"))
        found = {key.decode() for key in keys}
        assert found == blobs
        assert all([await self.redis.ttl(key) == -1 for key in found])

    def _prompt(self, index: int, played: bool = False) -> pb.Prompt:
        environment = "calculator" if played else ""
        sampling = pb.SamplingParams(n=GROUP)
        return pb.Prompt(prompt_id=f"{index:08d}", text="1,2:3=", environment=environment, sampling=sampling)

    def _settles(self, stream: Stream, entry: Entry, answer: bool) -> bool:
        """Whoever comes first settles it, owner or not."""
        assert answer == ((stream, entry.id) not in self.settled)
        self.settled.add((stream, entry.id))
        return answer

    def _ends(self, group: str, field: str) -> None:
        del self.where[group]
        self.tickets.discard(group)
        self.ended[field] += GROUP

    def _find_buried(self) -> None:
        for letter_id in self.do(self.run.dead.ids()):
            if letter_id not in self.letters and (letter := self.do(self.run.dead.get(letter_id))):
                assert self.where[letter.group] == letter.stream
                self.letters[letter_id] = letter.group
                self.settled.add((Stream(letter.stream), letter.entry_id))
                self._ends(letter.group, f"dead:{letter.reason}")


def test_every_history_keeps_the_account(redis_url: str) -> None:
    Transitions.url = redis_url
    run_state_machine_as_test(
        Transitions,
        settings=settings(
            max_examples=15, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
