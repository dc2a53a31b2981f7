"""What a command says while it works: lines with the time, and below them, on a terminal, one that changes."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime

Show = Callable[[str], None]


def say(text: str, when: datetime | None = None) -> None:
    """A line on stderr, with the time: now, or when it happened. A terminal that is gone is no reason to stop."""
    stamp = time.strftime("%H:%M:%S") if when is None else when.astimezone().strftime("%H:%M:%S")
    with _written():
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

    live = Live(console=Console(stderr=True, highlight=False), auto_refresh=False, transient=True)

    def show(text: str) -> None:
        with _written():
            live.update(Text(text, style="dim", no_wrap=True, overflow="ellipsis"), refresh=True)

    with _written():
        live.start()
    try:
        yield show
    finally:
        with _written():
            live.stop()


@contextlib.contextmanager
def _written() -> Iterator[None]:
    """Once stderr takes nothing, as its terminal was closed or a disk is full, what follows goes nowhere."""
    try:
        yield
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
