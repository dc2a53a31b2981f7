"""Ctrl-C, SIGTERM and a terminal that is closed, for commands that have work to unwind."""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine

from shared.process.exits import EXIT_INTERRUPTED, EXIT_OK


def interruptible(work: Coroutine[None, None, None], quiet: bool = False) -> int:
    """Runs it; gives EXIT_OK, or EXIT_INTERRUPTED where a signal ended it.

    The first SIGINT or SIGTERM unwinds it in order. A second SIGINT ends everything at once: it only has to end this
    process, because its children die with it. A terminal that is closed (SIGHUP) ends neither it nor its children.

    Args:
        quiet: says nothing of it, for work that ends at once; that ends with the terminal, which it is for.
    """
    if not quiet:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    async def guarded() -> int:
        task = asyncio.ensure_future(work)
        interrupted = False

        def interrupt() -> None:
            nonlocal interrupted
            if interrupted:
                os._exit(EXIT_INTERRUPTED)
            interrupted = True
            if not quiet:
                sys.stderr.write("stopping; once more Ctrl-C ends everything at once\n")
            task.cancel()

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGINT, interrupt)
        loop.add_signal_handler(signal.SIGTERM, interrupt)
        try:
            await task
        except asyncio.CancelledError:
            return EXIT_INTERRUPTED
        return EXIT_OK

    return asyncio.run(guarded())
