"""What a command says while it works: lines with the time, and below them, on a terminal, one that changes."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime

Show = Callable[[str], None]


def say(text: str, when: datetime | None = None) -> None:
    """A line on stderr, with the time: now, or when it happened."""
    stamp = time.strftime("%H:%M:%S") if when is None else when.astimezone().strftime("%H:%M:%S")
    sys.stderr.write(f"{stamp} {text}\n")
    sys.stderr.flush()


@contextlib.contextmanager
def progress_line() -> Iterator[Show]:
    """A function that replaces the last line of the terminal; elsewhere, as in a pipe or a file, it does nothing.

    What else is written to `sys.stderr` goes above it. The line is gone after the block.
    """
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield lambda text: live.update(Text(text, style="dim", no_wrap=True, overflow="ellipsis"), refresh=True)
