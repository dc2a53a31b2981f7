"""A run as a discrete-event simulation: tickets, replicas with responses of very different lengths, learner, weights.

It knows times and sizes and no model: `throughput` computes them for GPUs, and a real run measures them. The rules are
those of RouterShift: a ticket for each group in flight; a prompt waits until its replica has the newest weights; new
weights come between two decoding steps; the learner takes the oldest groups, drops those that are too stale, and hands
their tickets back.
"""

import heapq
from collections import Counter, deque
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import simpy

Process = Generator[simpy.Event, Any, None]


@dataclass(frozen=True, slots=True)
class System:
    """What is simulated. Times are in seconds."""

    groups: int  # in a step
    n: int  # responses of a group
    max_staleness: int
    tickets: int  # groups in flight
    replicas: int
    slots: int  # responses that a replica samples at once
    decode_seconds: Callable[[int], float]  # of a step of a replica with this many responses
    prefill_seconds: float  # of one response's prompt, in which its replica decodes nothing
    length: Callable[[np.random.Generator], int]  # tokens of a response
    reward_seconds: float  # of a group, with others at the same time
    train_seconds: Callable[[int], float]  # of a step with this many response tokens
    publish_seconds: float  # in which the learner does not train
    load_seconds: float  # in which a replica does not sample
    token_bytes: float  # on the stream
    stream_bandwidth: float  # bytes a second of the streams, all of them together
    unused: float = 0.0  # share of groups that are not trained on, as their rewards are all alike


@dataclass(slots=True)
class _Group:
    version: int = -1  # the first that sampled a token of it, and so the oldest
    missing: int = 0
    tokens: int = 0


@dataclass(slots=True)
class Outcome:
    """What a simulated run came to."""

    steps: int
    seconds: float
    sampled_tokens: int
    trained_tokens: int
    learner_busy: float  # share of the time
    sampling: float  # share of the time that replicas had something to sample, weighted by how full they were
    staleness: dict[int, int]  # trained groups by the versions that they were behind
    stale: int  # groups dropped for it
    unused: int  # groups dropped for equal rewards
    stream_bytes_per_second: float
    stream_busy: float  # share of the time that the streams carried something
    step_seconds: list[float] = field(default_factory=list)

    @property
    def staleness_mean(self) -> float:
        """Versions that a trained group is behind, on average."""
        trained = sum(self.staleness.values())
        return sum(lag * count for lag, count in self.staleness.items()) / max(1, trained)


class _Run:
    def __init__(self, system: System, steps: int, warm_up: int, seed: int) -> None:
        self.system, self.steps, self.warm_up = system, steps, warm_up
        self.env = simpy.Environment()
        self.rng = np.random.default_rng(seed)
        self.waiting: deque[_Group] = deque()  # groups that no replica has taken
        self.scored: simpy.Store = simpy.Store(self.env)
        self.stream = simpy.Resource(self.env, capacity=1)
        self.version = 0
        self.done = self.env.event()
        self.arrived = [self.env.event() for _ in range(system.replicas)]
        self.sampled = self.trained = self.stale = self.unused = self.bytes = 0
        self.busy = self.carried = self.full = 0.0
        self.staleness: Counter[int] = Counter()
        self.ended: list[float] = []

    def admit(self, groups: int) -> None:
        """Gives out tickets, a group for each."""
        self.waiting.extend(_Group(missing=self.system.n) for _ in range(groups))
        for replica, event in enumerate(self.arrived):
            if not event.triggered:
                event.succeed()
                self.arrived[replica] = self.env.event()

    def replica(self, index: int) -> Process:
        """Samples: every response of a replica gets a token at each decoding step."""
        system, env = self.system, self.env
        active: list[tuple[float, int, _Group, int]] = []  # by the step at which each ends
        clock, serial, loaded = 0.0, 0, 0
        while True:
            if loaded < self.version:
                loaded = self.version
                yield env.timeout(system.load_seconds)
            taken = 0
            # A group is sampled by one replica, which takes it when there is room for all of it.
            while self.waiting and (not active or len(active) + system.n <= system.slots):
                group = self.waiting.popleft()
                group.version = loaded
                taken += system.n
                for length in (max(1, system.length(self.rng)) for _ in range(system.n)):
                    serial += 1
                    heapq.heappush(active, (clock + length, serial, group, length))
            if taken:
                yield env.timeout(taken * system.prefill_seconds)
            if not active:
                yield self.arrived[index]
                continue
            # To the next end of a response, or a piece of it, so that new weights and prompts are seen.
            step = system.decode_seconds(len(active))
            ahead = min(active[0][0] - clock, max(1.0, 1.0 / step))
            yield env.timeout(ahead * step)
            clock += ahead
            self.full += ahead * step * min(1.0, len(active) / system.slots)
            while active and active[0][0] <= clock:
                _, _, group, length = heapq.heappop(active)
                group.missing -= 1
                group.tokens += length
                self.sampled += length
                if not group.missing:
                    env.process(self.hand_over(group))

    def hand_over(self, group: _Group) -> Process:
        """To reward and on to the learner, over the streams."""
        size = group.tokens * self.system.token_bytes
        for _ in range(2):  # rollouts, and scored
            with self.stream.request() as turn:
                yield turn
                yield self.env.timeout(size / self.system.stream_bandwidth)
                self.bytes += int(size)
                self.carried += size / self.system.stream_bandwidth
        yield self.env.timeout(self.system.reward_seconds)
        if self.rng.random() < self.system.unused:
            self.unused += 1
            self.admit(1)
            return
        yield self.scored.put(group)

    def learner(self) -> Process:
        """Trains, publishes, and hands tickets back."""
        system, env = self.system, self.env
        for step in range(self.warm_up + self.steps):
            batch: list[_Group] = []
            while len(batch) < system.groups:
                group = yield self.scored.get()
                if self.version - group.version > system.max_staleness:
                    self.stale += 1
                    self.admit(1)
                else:
                    batch.append(group)
            seconds = system.train_seconds(sum(group.tokens for group in batch))
            yield env.timeout(seconds)
            self.busy += seconds
            self.staleness.update(self.version - group.version for group in batch)
            self.trained += sum(group.tokens for group in batch)
            self.version += 1
            yield env.timeout(system.publish_seconds)
            self.admit(system.groups)
            self.ended.append(env.now)
            if step + 1 == self.warm_up:
                self.forget()
        self.done.succeed()

    def forget(self) -> None:
        """The warm-up does not count: the first step waits for everything."""
        self.sampled = self.trained = self.stale = self.unused = self.bytes = 0
        self.busy = self.carried = self.full = 0.0
        self.staleness.clear()


def simulate(system: System, steps: int = 20, warm_up: int = 5, seed: int = 0) -> Outcome:
    """Runs it.

    Args:
        steps: that count, after `warm_up` others.
        seed: of lengths and equal rewards; the same seed gives the same outcome.
    """
    run = _Run(system, steps, warm_up, seed)
    for index in range(system.replicas):
        run.env.process(run.replica(index))
    run.env.process(run.learner())
    run.admit(system.tickets)
    run.env.run(until=run.done)
    begin = run.ended[warm_up - 1] if warm_up else 0.0
    seconds = run.ended[-1] - begin
    times = [begin, *run.ended[warm_up:]]
    return Outcome(
        steps=steps,
        seconds=seconds,
        sampled_tokens=run.sampled,
        trained_tokens=run.trained,
        learner_busy=run.busy / seconds,
        sampling=run.full / seconds / system.replicas,
        staleness=dict(sorted(run.staleness.items())),
        stale=run.stale,
        unused=run.unused,
        stream_bytes_per_second=run.bytes / seconds,
        stream_busy=run.carried / seconds,
        step_seconds=[after - before for before, after in pairwise(times)],
    )


def log_normal(mean: float, longest: int, spread: float = 0.8) -> Callable[[np.random.Generator], int]:
    """Lengths of responses with a long tail.

    Args:
        mean: tokens, before those above `longest` are cut.
        spread: standard deviation of the logarithm; 0: all have the mean.
    """
    centre = np.log(mean) - spread**2 / 2
    return lambda rng: int(min(longest, max(1.0, np.exp(rng.normal(centre, spread)))))
