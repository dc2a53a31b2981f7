"""Verifications per second of countdown, math and code through worker processes, and of the libraries called directly.

`ratio` is ours over the library in the same process and thread, median of paired rounds; for countdown the library is
the verifier itself, for math it is math-verify. `ratio_own` is ours over our own verifier, called directly. A
batch of countdown takes a few milliseconds, so several are in flight, as groups are in the service; `ratio_alone` has a
single one, and is the time of a message there and back more than it is throughput. Math has one batch at a time; its
rounds repeat the same answers, whose readings it keeps, as it does for the answers of a group that are alike.
`code_median_ms` is the time of one program, one after the other, cases and tests in turn.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any

import math_verify

from services.reward.outcomes import Outcome
from services.reward.scoring import Scorer
from services.reward.settings import RewardSettings
from services.reward.verifiers.base import Item, Verifier
from services.reward.verifiers.registry import make_verifiers
from tests.bench.timing import Timings, interleaved
from tests.support.math_pairs import BOXED

_PROGRAM = "```python\ndef add(a, b):\n    return a + b\n\nif __name__ == '__main__':\n    {main}\n```".format(
    main="print(add(*map(int, input().split())))"
)
QUICK = {"rounds": 8, "programs": 10}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=256, help="items in a batch of countdown and of math")
    parser.add_argument("--in-flight", type=int, default=8, help="batches of countdown in a round, all at once")
    parser.add_argument("--rounds", type=int, default=41, help="paired rounds of countdown; of math, a quarter of it")
    parser.add_argument("--programs", type=int, default=40, help="programs whose median is taken")
    parser.add_argument("--processes", type=int, default=2, help="worker processes of each verifier")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Takes about half a minute on two cores."""
    with asyncio.Runner() as runner:
        scorer = Scorer(make_verifiers({}), RewardSettings(processes=arguments.processes))
        try:
            return _run(runner, scorer, arguments)
        finally:
            runner.run(scorer.close())


def _run(runner: asyncio.Runner, scorer: Scorer, arguments: argparse.Namespace) -> dict[str, Any]:
    batch, rounds = arguments.batch, arguments.rounds

    async def score_all(name: str, items: Sequence[Item], size: int) -> None:
        parts = [items[i : i + size] for i in range(0, len(items), size)]
        scored = [s for part in await asyncio.gather(*(scorer.score(name, part) for part in parts)) for s in part]
        assert all(s.outcome is Outcome.SCORED for s in scored), [s for s in scored if s.outcome is not Outcome.SCORED]

    def score(name: str, items: Sequence[Item], size: int = batch) -> None:
        runner.run(score_all(name, items, size))

    def compare(name: str, items: Sequence[Item], rounds: int, **others: Callable[[], object]) -> Timings:
        sys.stderr.write(f"{name}: {len(items)} items a round\n")
        return interleaved({"ours": partial(score, name, items), **others}, rounds, warmup=2)

    sums = [_sum(random.Random(i)) for i in range(batch * arguments.in_flight)]
    countdown = compare("countdown", sums, rounds, own=partial(_directly, scorer, "countdown", sums))
    single = sums[:batch]
    alone = compare("countdown", single, rounds, own=partial(_directly, scorer, "countdown", single))
    pairs = [BOXED[i % len(BOXED)] for i in range(batch)]
    texts = [(gold, rf"So it is $\boxed{{{answer}}}$.") for gold, answer, _ in pairs]
    answers = [Item("", answer, {"answer": gold}) for gold, answer in texts]
    math = compare(
        "math", answers, max(rounds // 4, 3),
        library=partial(_with_the_library, texts), own=partial(_directly, scorer, "math", answers),
    )  # fmt: skip
    programs = [_program(i) for i in range(arguments.programs)]
    score("code", programs[:2])
    times = []
    for program in programs:
        start = time.perf_counter()
        score("code", [program])
        times.append(time.perf_counter() - start)
    code = interleaved({"ours": partial(score, "code", programs)}, rounds=3, warmup=0)
    return {
        "ratio": {"countdown": countdown.ratio("ours", "own").median, "math": math.ratio("ours", "library").median},
        "ratio_own": {"countdown": countdown.ratio("ours", "own").median, "math": math.ratio("ours", "own").median},
        "ratio_alone": {"countdown": alone.ratio("ours", "own").median},
        "spread": {"countdown": asdict(countdown.ratio("ours", "own")), "math": asdict(math.ratio("ours", "library"))},
        "cpu": {
            "countdown": countdown.cpu("own", "verification", len(sums)),
            "math": math.cpu("library", "verification", batch),
            "code": code.cpu("ours", "verification", len(programs)),
        },
        "verifications_per_second": {
            "countdown": countdown.rate("ours", len(sums)).median,
            "math": math.rate("ours", batch).median,
            "code": code.rate("ours", len(programs)).median,
        },
        "code_median_ms": 1000 * statistics.median(times),
        "batch": batch,
        "in_flight": arguments.in_flight,
        "processes": arguments.processes,
    }


def _directly(scorer: Scorer, name: str, items: Sequence[Item]) -> None:
    verifier = scorer.verifiers[name]
    assert isinstance(verifier, Verifier)
    for item in items:
        verifier.verify(item)


def _with_the_library(texts: Sequence[tuple[str, str]]) -> None:
    for gold, answer in texts:
        math_verify.verify(math_verify.parse(f"${gold}$"), math_verify.parse(answer))


def _sum(rng: random.Random) -> Item:
    """Four numbers, as in the recipe, and an expression that uses them."""
    a, b, c, d = numbers = [rng.randint(1, 25) for _ in range(4)]
    reference = {"numbers": numbers, "target": (a + b) * c - d - rng.randint(0, 1)}
    return Item(f"{a},{b},{c},{d}:{reference['target']}=", f"({a}+{b})*{c}-{d}", reference)


def _program(index: int) -> Item:
    if index % 2:
        return Item("", _PROGRAM, {"tests": [f"assert add({i}, 2) == {i + 2}" for i in range(5)]})
    return Item("", _PROGRAM, {"cases": [{"input": f"{i} 2\n", "output": f"{i + 2}\n"} for i in range(5)]})
