"""The lines of a plan."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["", "note", "MEND"]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plan; MEND is what would stop or break the run, and its text says what to change."""

    kind: Kind
    about: str
    text: str
