"""Looks at a run again and again, until it has ended: redrawn on a terminal, block after block on a pipe."""

import asyncio
import contextlib
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from services.cli.attached import attached
from services.cli.live.look import Look, look
from services.cli.live.words import Row, duration, rows, text
from shared.errors import MissingDependencyError, UnavailableError

_RATE_SECONDS = 30.0  # over which rates are taken
_PATIENCE_SECONDS = 15.0  # for a Redis that is being started again; then what the run left is shown
_COLOURS = {"warning": "yellow", "error": "bold red"}

Show = Callable[[Sequence[Row]], None]


async def watch(name: str, every: float) -> None:
    """Shows a run until it has ended.

    Args:
        name: a run's folder or id.
        every: seconds between looks.

    Raises:
        MissingDependencyError: on a terminal, without the package rich.
        RouterShiftError: those of `attached`, at the first look.
    """
    with _shown() as show:
        seen: deque[Look] = deque()
        async for now in _looks(name, every, show):
            while len(seen) > 1 and now.at - seen[0].at > _RATE_SECONDS:
                seen.popleft()
            show(rows(now, seen[0] if seen else None))
            seen.append(now)


async def _looks(name: str, every: float, show: Show) -> AsyncIterator[Look]:
    """Looks until the run has ended; the last one is at what it left."""
    ended = False
    while not ended:
        answered: Look | None = None
        async with attached(name) as found:
            silent_since: float | None = None
            while not ended:
                try:
                    answered = await look(found)
                    silent_since = None
                    ended = not answered.live or answered.finished
                    yield answered
                except UnavailableError:
                    if answered is None:
                        raise
                    silent_since = silent_since or time.monotonic()
                    silence = time.monotonic() - silent_since
                    if silence > _PATIENCE_SECONDS:
                        break
                    show([*rows(answered), Row("redis", f"has not answered for {duration(silence)}", "warning")])
                if not ended:
                    await asyncio.sleep(every)


@contextlib.contextmanager
def _shown() -> Iterator[Show]:
    if not sys.stdout.isatty():
        yield _print
        return
    try:
        from rich.console import Console
        from rich.live import Live
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError:
        raise MissingDependencyError(
            "status --watch redraws a terminal with rich, which is not installed; pip install 'routershift[local]', or "
            "send its output through `| cat`"
        ) from None

    with Live(console=Console(highlight=False), auto_refresh=False, vertical_overflow="crop") as live:

        def draw(shown: Sequence[Row]) -> None:
            table = Table.grid(padding=(0, 2))
            for row in shown:
                colour = _COLOURS.get(row.level, "")
                table.add_row(Text(row.label, style=colour or "bold"), Text(row.text, style=colour))
            live.update(table, refresh=True)

        yield draw


def _print(shown: Sequence[Row]) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}\n{text(shown)}\n")
    sys.stdout.flush()
