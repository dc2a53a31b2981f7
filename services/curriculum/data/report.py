"""What was found in the data: counts, lengths, and the rows that cannot be used."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.curriculum.data.rows import BadRow, Fault, faults

_BINS = 16
_ROWS_NAMED = 100  # of each fault, in a record


@dataclass
class SourceReport:
    """One table [[data.train]] or [[data.eval]]. Every row is counted once."""

    where: str  # as data.train.0
    label: str
    rows: int = 0  # that were read
    used: int = 0  # that are trained on, or evaluated on
    held_out: int = 0  # of a training source without [[data.eval]]
    filtered: int = 0  # by its `filter`
    too_long: int = 0  # longer than max_prompt_tokens
    duplicates: int = 0
    conflicts: int = 0  # rows that are used with a prompt that another row has too, with another reference
    contaminated: int = 0  # in a held-out set, and so not trained on
    bad: list[BadRow] = field(default_factory=list)
    verifiers: Counter[str] = field(default_factory=Counter)  # of the rows that are used
    environments: Counter[str] = field(default_factory=Counter)  # of the rows that are used
    lengths: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))  # prompt tokens of used rows
    first_prompt: str = ""  # of the first used row, rendered
    first_token_ids: tuple[int, ...] = ()
    unread: list[str] = field(default_factory=list)  # columns that nothing of the table reads
    examples: dict[str, list[str]] = field(default_factory=dict)  # a few rows each of what was left out, by reason

    @property
    def bad_share(self) -> float:
        return len(self.bad) / self.rows if self.rows else 0.0

    @property
    def unread_in_words(self) -> str:
        """The columns that nothing reads, and what to do about it."""
        return (
            f"not read: {', '.join(self.unread)}; name a column in `prompt` for the policy to see it, or in `columns` "
            "for the verifier"
        )

    @property
    def conflicts_in_words(self) -> str:
        """That the policy cannot tell some rows apart which are judged differently, with one of them."""
        return (
            f"{self.conflicts} rows have the prompt of another row and another reference, as "
            f"{self.examples['conflicts'][0]}; the policy cannot tell them apart: take out those that are wrong"
        )

    def faults(self) -> list[Fault]:
        """The bad rows, by what is wrong with them."""
        return faults(self.bad)

    def note(self, reason: str, row: str) -> None:
        """Keeps the first few rows that were left out, or that are to be looked at, for a reason."""
        kept = self.examples.setdefault(reason, [])
        if len(kept) < 5:
            kept.append(row)

    def histogram(self) -> list[tuple[int, int, int]]:
        """Prompt lengths in tokens: (from, to, rows) of each bin, both ends included; [] where no row is used."""
        if not self.lengths.size:
            return []
        low, high = int(self.lengths.min()), int(self.lengths.max())
        width = -(-(high - low + 1) // _BINS)
        counts = np.bincount((self.lengths - low) // width)
        return [(low + i * width, min(low + (i + 1) * width - 1, high), int(n)) for i, n in enumerate(counts)]

    def as_record(self) -> dict[str, Any]:
        """JSON values of all there is."""
        lengths = self.lengths
        return {
            "table": self.where, "source": self.label, "rows": self.rows, "used": self.used,
            "held_out": self.held_out, "filtered": self.filtered, "too_long": self.too_long,
            "duplicates": self.duplicates, "contaminated": self.contaminated, "conflicts": self.conflicts,
            "bad": len(self.bad), "bad_rows": [str(row) for row in self.bad[:20]],
            "faults": [
                {
                    "said": str(fault), "count": len(fault.rows),
                    "rows": [f"{row.file}:{row.number}" for row in fault.rows[:_ROWS_NAMED]],
                }
                for fault in self.faults()
            ],
            "unread_columns": self.unread,
            "verifiers": dict(self.verifiers), "environments": dict(self.environments), "examples": self.examples,
            "prompt_tokens": {
                "min": int(lengths.min()), "mean": round(float(lengths.mean()), 1), "max": int(lengths.max()),
                "histogram": [list(each) for each in self.histogram()],
            } if lengths.size else {},
        }  # fmt: skip

    def __str__(self) -> str:
        """One line."""
        parts = {
            "held out": self.held_out, "filtered": self.filtered, "too long": self.too_long,
            "duplicates": self.duplicates, "contaminated": self.contaminated, "bad": len(self.bad),
        }  # fmt: skip
        left = "".join(f", {count} {name}" for name, count in parts.items() if count)
        return f"{self.where} ({self.label}): {self.rows} rows, {self.used} used{left}"


@dataclass
class Report:
    """All sources of a recipe."""

    train: list[SourceReport] = field(default_factory=list)
    eval: list[SourceReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # what a start would be refused for, a line each

    def as_record(self) -> dict[str, Any]:
        return {
            "train": [source.as_record() for source in self.train],
            "eval": [source.as_record() for source in self.eval],
            "problems": self.problems,
        }
