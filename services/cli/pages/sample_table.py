"""The kept samples of a run as a table: filtered, sorted and cut into pages, from their index alone."""

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from shared.errors import CorruptDataError, InvalidInputError, NotFoundError
from shared.tracking.sample import Summary
from shared.tracking.samples import Samples

MOST_ROWS = 200  # of a page
SORTABLE = tuple(each.name for each in fields(Summary))
_SEARCHED = ("trajectory", "problem", "prompt", "response")
_CHOICES = {"yes": True, "no": False}


@dataclass(frozen=True, slots=True)
class Query:
    """Which samples are wanted, and in which order."""

    offset: int = 0
    limit: int = 50
    sort: str = "step"
    descending: bool = True
    outcome: str = ""  # "": all
    correct: bool | None = None  # None: all
    text: str = ""  # within ids and the beginnings of prompt and response, whatever its case
    first_step: int | None = None
    last_step: int | None = None

    @classmethod
    def of(cls, values: Mapping[str, str]) -> Self:
        """From the parameters of a URL; an empty one is as good as none.

        Raises:
            InvalidInputError: an unknown name or a value that does not fit; names both.
        """
        known = {each.name for each in fields(cls)}
        for name in values:
            if name not in known:
                raise InvalidInputError(f"{name} is no parameter of samples; known: {', '.join(sorted(known))}")
        given = {name: value for name, value in values.items() if value != ""}
        made: dict[str, Any] = {name: given[name] for name in ("outcome", "text") if name in given}
        for name in ("offset", "limit", "first_step", "last_step"):
            if name in given:
                made[name] = whole_number(name, given[name])
        for name in ("descending", "correct"):
            if name in given:
                made[name] = _one_of(name, given[name], _CHOICES)
        if "sort" in given:
            made["sort"] = _one_of("sort", given["sort"], {name: name for name in SORTABLE})
        if not 1 <= made.get("limit", cls().limit) <= MOST_ROWS:
            raise InvalidInputError(f"limit is {made['limit']}; give 1 to {MOST_ROWS}")
        return cls(**made)

    def takes(self, summary: Summary) -> bool:
        """Whether a sample is one of those wanted."""
        return (
            (not self.outcome or summary.outcome == self.outcome)
            and (self.correct is None or (summary.correct is not None and (summary.correct >= 1) == self.correct))
            and (self.first_step is None or summary.step >= self.first_step)
            and (self.last_step is None or summary.step <= self.last_step)
            and (not self.text or self._has_text(summary))
        )

    def _has_text(self, summary: Summary) -> bool:
        wanted = self.text.casefold()
        return any(wanted in getattr(summary, name).casefold() for name in _SEARCHED)


@dataclass(frozen=True, slots=True)
class Page:
    """Some rows of a table."""

    rows: Sequence[Summary]
    total: int  # that the query takes
    kept: int  # that there are
    outcomes: Sequence[str]  # of all that there are

    def record(self) -> dict[str, Any]:
        """Plain values by name."""
        return {
            "rows": [_row(row) for row in self.rows],
            "total": self.total,
            "kept": self.kept,
            "outcomes": list(self.outcomes),
        }


@dataclass(slots=True)
class SampleTable:
    """The summaries of a run, read again only where their step has more; may be used by several threads.

    A sample itself is read when it is asked for, and no sooner.
    """

    run: Path
    _samples: Samples = field(init=False)
    _known: dict[int, tuple[int, list[Summary]]] = field(init=False, default_factory=dict)  # by step
    _lock: threading.Lock = field(init=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._samples = Samples(self.run)

    def summaries(self) -> list[Summary]:
        """All of them, in the order of their steps."""
        with self._lock:
            sizes = {step: self._samples.index_bytes(step) for step in self._samples.steps()}
            known = {step: found for step, found in self._known.items() if found[0] == sizes.get(step)}
            for step in sizes.keys() - known.keys():
                known[step] = sizes[step], self._samples.summaries(step)
            self._known = dict(sorted(known.items()))
            return [summary for _, found in self._known.values() for summary in found]

    def index_bytes(self) -> int:
        """Grows with every sample."""
        return sum(self._samples.index_bytes(step) for step in self._samples.steps())

    def page(self, query: Query) -> Page:
        """The rows that a query wants."""
        every = self.summaries()
        found = ordered((summary for summary in every if query.takes(summary)), query.sort, query.descending)
        outcomes = sorted({summary.outcome for summary in every})
        return Page(found[query.offset : query.offset + query.limit], len(found), len(every), outcomes)

    def sample(self, step: int, trajectory: str) -> dict[str, Any]:
        """One sample as plain values.

        Raises:
            NotFoundError: no such sample.
            CorruptDataError: it cannot be read.
        """
        return self._samples.read(step, trajectory).record()

    def some(self, count: int, most_numbers: int) -> list[dict[str, Any]]:
        """A few samples of every kind for a page that has no server: summary and sample, in the order of their steps.

        Args:
            most_numbers: of all of them together; longer ones are passed over.
        """
        found: dict[str, tuple[Summary, dict[str, Any]]] = {}
        for summary in _of_every_kind(self.summaries()):
            if len(found) == count:
                break
            try:
                sample = self.sample(summary.step, summary.trajectory)
            except (NotFoundError, CorruptDataError):  # removed or torn since the index was read
                continue
            numbers = summary.tokens * (8 + len(sample["layers"]))
            if numbers <= most_numbers and summary.trajectory not in found:
                most_numbers -= numbers
                found[summary.trajectory] = summary, sample
        chosen = sorted(found.values(), key=lambda pair: (pair[0].step, pair[0].trajectory))
        return [{"summary": _row(summary), "sample": sample} for summary, sample in chosen]


def ordered(summaries: Iterable[Summary], key: str, descending: bool) -> list[Summary]:
    """Sorted, those without a value last either way; equals stay in the order of their steps."""
    having: list[Summary] = []
    lacking: list[Summary] = []
    for summary in summaries:
        (lacking if getattr(summary, key) is None else having).append(summary)
    having.sort(key=lambda summary: getattr(summary, key), reverse=descending)
    return having + lacking


def _row(summary: Summary) -> dict[str, Any]:
    return summary.record() | {"group": summary.group}


def _of_every_kind(summaries: Sequence[Summary]) -> Iterable[Summary]:
    """Takes turns: whose routers moved most, highest and lowest reward, newest, and each kind that was dropped."""
    orders = [
        ordered(summaries, "gamma_min", descending=False),
        ordered(summaries, "reward", descending=True),
        ordered((s for s in summaries if s.is_trained), "reward", descending=False),
        ordered(summaries, "step", descending=True),
        *(
            [s for s in reversed(summaries) if s.outcome == outcome]
            for outcome in sorted({s.outcome for s in summaries if not s.is_trained})
        ),
    ]
    for turn in range(len(summaries)):
        for order in orders:
            if turn < len(order):
                yield order[turn]


def whole_number(name: str, value: str) -> int:
    """Reads a parameter of a URL. Raises InvalidInputError, naming both, where it is none or far too large."""
    if not value.isascii() or not value.isdecimal() or len(value) > 12:
        raise InvalidInputError(f"{name} is {value!r}; give a whole number of at least 0")
    return int(value)


def _one_of(name: str, value: str, choices: Mapping[str, Any]) -> Any:
    if value not in choices:
        raise InvalidInputError(f"{name} is {value!r}; give one of {', '.join(choices)}")
    return choices[value]
