"""Names that were meant."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like this one, for a message."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]


def did_you_mean(name: str, known: Iterable[object]) -> str:
    """A hint for the end of a message, of the known name that is like this one; "" where none is."""
    near = difflib.get_close_matches(name, list(map(str, known)), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
