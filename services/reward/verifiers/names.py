"""Names that were meant."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like this one, for a message."""
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0.0)[0]
