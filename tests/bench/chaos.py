"""Random faults into a whole run, one every ten seconds: what was lost, and how long it took to recover.

One after the other, or two at once; the next one comes when the run goes on. `recovery_seconds` is the time from the
end of a fault until every service serves and each stage has done something new. `acknowledged` counts the writes that
brought groups from stage to stage, `lost` those that Redis did not have any more after it was killed, and groups of
which nothing is known, `unexpected` what no fault explains: `found` says what.
"""

import argparse
import asyncio
import random
import sys
import time
from typing import Any

from tests.bench.timing import cpu_seconds
from tests.chaos.campaign import Campaign, schedule
from tests.chaos.stack import running

_EVERY_SECONDS = 10.0
QUICK = {"minutes": 1.0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--minutes", type=float, default=10.0, help="how long faults come")
    parser.add_argument("--seed", type=int, default=0, help="of the schedule")
    parser.add_argument("--appendfsync", choices=["always", "everysec"], default="always", help="of Redis")
    parser.add_argument("--engine", choices=["torch", "vllm"], default="torch", help="of generation")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Takes `--minutes`, and about one more to start and to stop."""
    options = {name: getattr(arguments, name) for name in ("seed", "appendfsync", "engine")}
    return {**options, **asyncio.run(_run(arguments))}


async def _run(arguments: argparse.Namespace) -> dict[str, Any]:
    """A run that does not recover ends the campaign: what is known by then is the result."""
    pause = random.Random(arguments.seed)
    async with running(arguments.appendfsync, {"generation.engine": arguments.engine}) as stack:
        campaign = Campaign(stack)
        began, spent = time.monotonic(), cpu_seconds()
        due = began
        for faults in schedule(arguments.seed, arguments.engine, arguments.appendfsync, stack.services()):
            due += pause.expovariate(1 / _EVERY_SECONDS)
            if due - began > 60 * arguments.minutes or time.monotonic() - began > 60 * arguments.minutes:
                break
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            try:
                await campaign.strike(*faults)
            except AssertionError as error:
                sys.stderr.write(f"{error}\n")
                campaign.unexpected.append(str(error))
                break
        seconds, spent = time.monotonic() - began, cpu_seconds() - spent
        found = await campaign.finish()
        per_write = spent / max(found["acknowledged"], 1)  # killed processes count until their end
        return {"seconds": seconds, "cpu_seconds": spent, "cpu_seconds_per_acknowledged": per_write, **found}
