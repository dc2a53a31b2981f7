"""Whether router shift and its rivals keep a small MoE learning: arms, lags, pressures and seeds, paired by seed.

Every run is a cell and a seed, in one process or through all services: see tests/bench/study, and for the protocol
docs/explanation/stability.md. Runs are kept in a JSON Lines file as they end, so that a study can be stopped and goes
on where it was.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from services.cli.commands.bench import REPOSITORY, machine
from services.learner.checkpointing.identity import fingerprint
from shared.errors import CorruptDataError, InvalidInputError
from tests.bench.study import services
from tests.bench.study.cells import CORRECTIONS, OBJECTIVES, Cell, Pressure, factorial, parse_arm
from tests.bench.study.outcomes import compared, difference, outcomes
from tests.bench.study.page import results_page
from tests.bench.study.runs import Protocol
from tests.bench.study.runs import run as run_in_process

RunOne = Callable[[Cell, int, Protocol], dict[str, Any]]

_ARMS = "grpo+none,grpo+shift,grpo+permuted,gmpo+none,gmpo+shift"
# A batch is 32 groups of 8 as in the demo; 8 updates are 4 minibatches in each of 2 epochs.
_STEPS, _GROUPS, _SAMPLES, _MAX_TOKENS = 60, 32, 8, 16
QUICK = {"seeds": 3, "held_out": 256}
OUTCOMES = ("final", "final_greedy", "final_pass_at_4", "best")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    known = (
        f"OBJECTIVE+CORRECTION; of {', '.join(OBJECTIVES)} and {', '.join(CORRECTIONS)}; with another lower bound of "
        "gamma as in shift@0.5"
    )
    parser.add_argument("--arms", type=_arms, default=_arms(_ARMS), help=f"{known}; default: {_ARMS}")
    parser.add_argument("--staleness", type=_numbers, default=[6], help="versions of lag, with commas between")
    parser.add_argument("--learning-rates", type=_rates, default=[6e-4], help="with commas between")
    parser.add_argument("--minibatches", type=int, default=4, help="updates in a pass over a batch")
    parser.add_argument("--epochs", type=int, default=2, help="passes over a batch")
    parser.add_argument("--entropy-coefficient", type=float, default=0.0, help="of the entropy bonus, in all arms")
    parser.add_argument("--seeds", type=int, default=8, help="runs of each cell")
    parser.add_argument("--first-seed", type=int, default=0, help="of these")
    parser.add_argument("--steps", type=int, default=_STEPS, help="batches of a run")
    parser.add_argument("--held-out", type=int, default=512, help="held-out problems")
    parser.add_argument("--every", type=int, default=10, help="batches between evaluations")
    parser.add_argument("--groups", type=int, default=_GROUPS, help="groups of a batch")
    parser.add_argument(
        "--model",
        type=Path,
        default=REPOSITORY / "deploy" / "recipes" / "countdown" / "model",
        help="folder that runs start from; default: that of the demo",
    )
    parser.add_argument(
        "--services",
        action="store_true",
        help="through all services with the torch engine, one run after the other: a lag is then the most that is "
        "allowed, and no run repeats another",
    )
    parser.add_argument(
        "--processes", type=int, default=len(os.sched_getaffinity(0)), help="runs at once, a thread each"
    )
    parser.add_argument(
        "--runs", type=Path, help="JSON Lines of runs: those there are not repeated; default: none kept"
    )
    parser.add_argument("--page", type=Path, help="file for the results as a page of HTML; default: none written")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Raises InvalidInputError for numbers that make no run, CorruptDataError for a file of runs that is none."""
    for option in ("minibatches", "epochs", "seeds", "steps", "held_out", "every", "groups", "processes"):
        if (number := getattr(arguments, option)) < 1:
            raise InvalidInputError(f"--{option.replace('_', '-')} is {number}; it must be at least 1")
    protocol = Protocol(
        model=arguments.model,
        steps=arguments.steps,
        groups=arguments.groups,
        samples=_SAMPLES,
        max_tokens=_MAX_TOKENS,
        prompts=8 * arguments.groups,
        held_out=arguments.held_out,
        every=arguments.every,
        entropy_coefficient=arguments.entropy_coefficient,
    )
    pressures = [Pressure(rate, arguments.minibatches, arguments.epochs) for rate in arguments.learning_rates]
    cells = list(factorial(arguments.arms, arguments.staleness, pressures))
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    # All arms of a seed first: what is stopped early has whole pairs.
    wanted = [(cell, seed) for seed in seeds for cell in cells]
    common = {"protocol": protocol.as_json(), "model": fingerprint(protocol.model)}
    if arguments.services:
        services.require_services(cells)
        common["through"] = "services"
    known = _read(arguments.runs) if arguments.runs else {}
    missing = [(cell, seed) for cell, seed in wanted if _key(cell.as_json(), seed, common) not in known]
    sys.stderr.write(f"{len(wanted)} runs, {len(wanted) - len(missing)} of them there already\n")
    run_one, processes = (services.run, 1) if arguments.services else (run_in_process, arguments.processes)
    for record in _done(missing, protocol, common, run_one, processes):
        known[_key(record["cell"], record["seed"], record)] = record
        if arguments.runs:
            with arguments.runs.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
    records = [known[_key(cell.as_json(), seed, common)] for cell, seed in wanted]
    found = summary(cells, records) | common
    if arguments.page:
        arguments.page.write_text(
            results_page(found, records, shlex.join(["routershift", *sys.argv[1:]])), encoding="utf-8"
        )
        sys.stderr.write(f"wrote {arguments.page}\n")
    return found


def summary(cells: Sequence[Cell], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What each arm of each condition came to with every seed, and how arms differ.

    Args:
        records: one run each.
    """
    found: dict[str, Any] = {}
    for name in dict.fromkeys(cell.condition for cell in cells):
        arms: dict[str, dict[int, dict[str, Any]]] = {}
        for cell in cells:
            if cell.condition == name:
                own = [record for record in records if record["cell"] == cell.as_json()]
                arms[cell.arm] = {r["seed"]: outcomes(r["evaluations"], r["batches"]) for r in own}
        found[name] = {"arms": arms, "differences": _differences(arms)}
    return {
        "start": records[0]["evaluations"][0],
        "conditions": found,
        "commits": sorted({str(record["machine"]["commit"]) for record in records}),
        "cpu_seconds": sum(record["cpu_seconds"] for record in records),
        "runs": len(records),
    }


def _differences(arms: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """The pairs that `compared` names, in each outcome that is compared."""
    return {
        f"{better} - {than}": {
            name: found.as_json()
            for name in OUTCOMES
            if (found := difference(_by_seed(arms[better], name), _by_seed(arms[than], name))) is not None
        }
        for better, than in compared(list(arms))
    }


def _by_seed(runs: Mapping[int, Mapping[str, Any]], name: str) -> dict[int, float]:
    return {seed: run[name] for seed, run in runs.items()}


def _done(
    wanted: Sequence[tuple[Cell, int]], protocol: Protocol, common: Mapping[str, Any], run_one: RunOne, processes: int
) -> Iterator[dict[str, Any]]:
    """Runs as they end."""
    began, around = time.monotonic(), machine(REPOSITORY)
    results = (_in_processes if processes > 1 else _in_turn)(wanted, protocol, run_one, processes)
    for done, (cell, seed, result) in enumerate(results, start=1):
        left = (time.monotonic() - began) / done * (len(wanted) - done)
        last = result["evaluations"][-1]
        sys.stderr.write(
            f"{done}/{len(wanted)} {cell.arm} {cell.condition}, seed {seed}: pass@1 "
            f"{last['pass_at_1']:.3f} greedy {last['greedy']:.3f}, {result['cpu_seconds']:.0f} CPU-seconds; "
            f"{left / 60:.0f} minutes left\n"
        )
        yield {"cell": cell.as_json(), "seed": seed, **common, "machine": around, **result}


def _in_turn(
    wanted: Sequence[tuple[Cell, int]], protocol: Protocol, run_one: RunOne, processes: int
) -> Iterator[tuple[Cell, int, dict[str, Any]]]:
    for cell, seed in wanted:
        yield cell, seed, _timed(run_one, cell, seed, protocol)


def _in_processes(
    wanted: Sequence[tuple[Cell, int]], protocol: Protocol, run_one: RunOne, processes: int
) -> Iterator[tuple[Cell, int, dict[str, Any]]]:
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_timed, run_one, cell, seed, protocol): (cell, seed) for cell, seed in wanted}
        try:
            for future in as_completed(futures):
                yield *futures[future], future.result()
        finally:  # also of who stops: those that have begun end, and no other begins
            pool.shutdown(cancel_futures=True)


def _timed(run_one: RunOne, cell: Cell, seed: int, protocol: Protocol) -> dict[str, Any]:
    began = _cpu_seconds()
    record = run_one(cell, seed, protocol)
    return record | {"cpu_seconds": round(_cpu_seconds() - began, 1)}


def _cpu_seconds() -> float:
    """CPU-seconds of this process and of all below it that have ended."""
    return sum(os.times()[:4])


def _read(file: Path) -> dict[str, dict[str, Any]]:
    """Runs by their key. A last line that was cut off is left out, and its run is made again."""
    found = {}
    lines = file.read_text(encoding="utf-8").split("\n") if file.exists() else []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
            found[_key(record["cell"], record["seed"], record)] = record
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                file.write_text("".join(f"{whole}\n" for whole in lines[:-1]), encoding="utf-8")
                continue
            raise CorruptDataError(f"{file}, line {number} is no run of this bench ({error!r}); remove it") from None
    return found


def _key(cell: Mapping[str, Any], seed: int, common: Mapping[str, Any]) -> str:
    """What makes a run another one: nothing of the machine or the commit."""
    return json.dumps([cell, seed, common["protocol"], common["model"], common.get("through")], sort_keys=True)


def _arms(value: str) -> list[tuple[str, str]]:
    try:
        return [parse_arm(name) for name in value.split(",")]
    except InvalidInputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _numbers(value: str) -> list[int]:
    return [int(number) for number in value.split(",")]


def _rates(value: str) -> list[float]:
    return [float(number) for number in value.split(",")]
