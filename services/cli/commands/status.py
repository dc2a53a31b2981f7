"""`routershift status`: where a run stands, from Redis alone."""

from typing import Any

from services.cli.attached import attached


async def status(name: str) -> dict[str, Any]:
    """Progress, ledger and streams of a run; of one that has ended, what it left.

    Args:
        name: a run's folder or id. With REDIS_URL set, any run of that Redis by its id.

    Raises:
        NotFoundError: no such run.
        PreconditionError: the run used a Redis of its own, and REDIS_URL is not set.
        UnavailableError: its Redis does not answer and left nothing.
    """
    async with attached(name) as found:
        run = found.run
        ledger = await run.ledger()
        return {
            "run": run.keys.run,
            "live": found.live,
            **(await run.progress()).as_record(),
            "tickets_held": await run.tickets_held(),
            "streams": {s: {"entries": b.entries, "bytes": b.bytes} for s, b in (await run.backlog()).items()},
            "dead_letters": await run.dead_letters(),
            "ledger": {
                "prompted": ledger.prompted,
                "trained": ledger.trained,
                "dropped": dict(ledger.dropped),
                "dead": dict(ledger.dead),
                "in_flight": ledger.in_flight,
                "balanced": ledger.balanced,
            },
        }
