"""The problems of a run's data: training rows in their order, and held-out sets."""

import logging
from collections.abc import Sequence

from services.curriculum.data.items import Item
from services.curriculum.data.loading import HELD_OUT, load
from services.curriculum.data.order import Order, Share
from services.curriculum.data.overlap import Loaded
from services.curriculum.data.settings import EvalSettings
from services.curriculum.held_out import HeldOutSettings
from services.curriculum.problems import HeldOutSet, Problem
from services.curriculum.settings import Settings

log = logging.getLogger(__name__)

_FAULTS_SAID = 5  # of each source, in the log


class DataProblems:
    """Problems made of rows. Everything was read and checked when it is made; nothing changes after."""

    def __init__(self, settings: Settings) -> None:
        """Reads every row, which may take minutes, and logs what was left out.

        Raises:
            NotFoundError: no such file or data set.
            InvalidInputError: too many rows cannot be used; names file, row, column, value and fix.
            CorruptDataError: a file is cut off or is not what its name says.
            PreconditionError: the model has no chat template, and the recipe asks for one.
            MissingDependencyError: a package that reads a source is not installed.
        """
        loaded = load(settings, settings.run.require_model())
        _say(loaded)
        if loaded.errors:
            raise loaded.errors[0]
        data = settings.data
        self._items: list[Item] = [item for items in loaded.train for item in items]
        shares = [
            Share(len(items), source.repeats, source.weight)
            for items, source in zip(loaded.train, data.train, strict=True)
            if items
        ]
        self.order = Order(shares, settings.run.seed)
        self._held_out = _held_out_sets(settings, loaded)
        self.report = loaded.report

    def __len__(self) -> int:
        """Training rows."""
        return len(self._items)

    def problem(self, row: int) -> Problem:
        """The problem of a training row, counted from 0 through all sources in order."""
        return self._items[row].problem()

    def train(self, index: int) -> Problem:
        """Training problem `index`, counted from 0: shuffled by `run.seed`, mixed by weight, epoch after epoch."""
        return self.problem(self.order.row(index))

    def held_out(self) -> Sequence[HeldOutSet]:
        """One a table [[data.eval]], or the one that is split off the training rows."""
        return self._held_out


def _held_out_sets(settings: Settings, loaded: Loaded) -> list[HeldOutSet]:
    tables: Sequence[EvalSettings | None] = settings.data.eval or (None,)
    found = []
    for items, table in zip(loaded.eval, tables, strict=True):
        how: HeldOutSettings = table or settings.curriculum.evaluation
        every = settings.run.evaluate_every if table is None or table.every is None else table.every
        problems = [item.problem() for item in items[: how.problems]]
        found.append(HeldOutSet(table.label if table else HELD_OUT, problems, how.sampling, how.pass_at, every))
    return found


def _say(loaded: Loaded) -> None:
    for source in (*loaded.report.train, *loaded.report.eval):
        log.info("%s", source)
        faults = source.faults()
        for fault in faults[:_FAULTS_SAID]:
            log.warning("%s: %s", source.where, fault)
        if more := sum(len(fault.rows) for fault in faults[_FAULTS_SAID:]):
            log.warning("%s: %d more rows cannot be used; `routershift data check` lists them", source.where, more)
