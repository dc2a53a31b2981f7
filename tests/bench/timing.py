"""Paired timings: what is compared is run in turns, so that a slow moment of the machine meets all of it alike.

Beside the wall clock stand the CPU-seconds of this process and everything that it has started. On a shared machine they
resolve small costs that the wall clock does not.
"""

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil


@dataclass(frozen=True, slots=True)
class Spread:
    """What a few repetitions of one number were."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of each variant in each round; entry i of every variant comes from round i."""

    seconds: Mapping[str, Sequence[float]]
    cpu_seconds: Mapping[str, Sequence[float]] = field(default_factory=dict)  # of all processes, user and system

    def cpu(self, over: str, unit: str, work: float | Mapping[str, Sequence[float]]) -> dict[str, Any]:
        """For a bench's result: CPU-seconds of each variant per unit of work, and over those of `over`, paired.

        Args:
            unit: of the work, such as token.
            work: units in a turn; where turns differ, those of each variant in each round that counted.
        """
        units = work if isinstance(work, Mapping) else {name: [work] * len(s) for name, s in self.cpu_seconds.items()}
        each = {
            variant: [seconds / done for seconds, done in zip(spent, units[variant], strict=True)]
            for variant, spent in self.cpu_seconds.items()
        }
        return {
            f"seconds_per_{unit}": {variant: Spread.of(spent).median for variant, spent in each.items()},
            "ratio": {
                variant: asdict(Spread.of([mine / base for mine, base in zip(spent, each[over], strict=True)]))
                for variant, spent in each.items()
                if variant != over
            },
        }

    def spread(self, variant: str) -> Spread:
        """The spread of a variant's seconds."""
        return Spread.of(self.seconds[variant])

    def rate(self, variant: str, work: float) -> Spread:
        """The spread of `work` done per second."""
        return Spread.of([work / seconds for seconds in self.seconds[variant]])

    def ratio(self, variant: str, over: str) -> Spread:
        """The spread of its speed over that of another, within each round: above 1 where it is the faster one."""
        pairs = zip(self.seconds[variant], self.seconds[over], strict=True)
        return Spread.of([other / own for own, other in pairs])


def interleaved(
    variants: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 1,
    prepare: Callable[[str], object] = lambda variant: None,
    settle: Callable[[], object] = lambda: None,
) -> Timings:
    """Times every variant once in each of `rounds` rounds, after `warmup` rounds that do not count.

    Every second round goes backwards, so that a machine that slows down steadily favours nobody. Garbage is collected
    before the clock starts. Each round is told on stderr.

    Args:
        variants: what to time, by name.
        prepare: called with the name before each turn, off the clock.
        settle: called before every reading of the clock: on a GPU it waits for the device.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    cpu: dict[str, list[float]] = {name: [] for name in variants}
    gc.collect()
    gc.freeze()  # what is there already need not be searched again before every turn
    for i in range(warmup + rounds):
        for name in list(variants)[:: 1 if i % 2 == 0 else -1]:
            prepare(name)
            gc.collect()
            settle()
            spent, start = cpu_seconds(), time.perf_counter()
            variants[name]()
            settle()
            seconds[name].append(time.perf_counter() - start)
            cpu[name].append(cpu_seconds() - spent)
        what = "warm-up" if i < warmup else f"round {i - warmup + 1}/{rounds}"
        sys.stderr.write(f"{what}: {', '.join(f'{name} {taken[-1]:.3g} s' for name, taken in seconds.items())}\n")
    gc.unfreeze()
    return Timings(*({name: taken[warmup:] for name, taken in each.items()} for each in (seconds, cpu)))


def cpu_seconds() -> float:
    """User and system time so far of this process, of those that it started, and of those that have ended."""
    times = os.times()
    total = times.user + times.system + times.children_user + times.children_system
    for child in psutil.Process().children(recursive=True):
        try:
            spent = child.cpu_times()
        except psutil.NoSuchProcess:  # it has just ended, and is counted above
            continue
        total += spent.user + spent.system + spent.children_user + spent.children_system
    return total
