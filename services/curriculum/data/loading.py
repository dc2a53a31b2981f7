"""Reads all sources of a recipe, leaves out what cannot or must not be used, and says what it found."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from services.curriculum.data.items import Item
from services.curriculum.data.overlap import (
    Loaded,
    drop_contaminated,
    drop_duplicates,
    note_conflicts,
    place,
    place_in_order,
    split_off,
)
from services.curriculum.data.reading import read_rows
from services.curriculum.data.report import SourceReport
from services.curriculum.data.rows import BadRow, in_words
from services.curriculum.data.settings import DataSettings, EvalSettings, SourceSettings
from services.curriculum.data.usable import Judge, Room, SourceReader, check_alike, check_responses
from services.curriculum.settings import Settings
from shared.errors import InvalidInputError, RouterShiftError
from shared.models.folder import read_json
from shared.models.layout import context_length
from shared.models.tokenizer import load_tokenizer

HELD_OUT = "held-out"  # the name of the set that is split off the training rows
_FAULTS_SAID = 3  # of a source, where a start is refused


def load(settings: Settings, model: Path, judge: Judge | None = None, room: Room | None = None) -> Loaded:
    """Reads every row. What is wrong with a source is in `errors`, so that one does not hide the next.

    Args:
        settings: with tables [[data.train]].
        model: folder with tokenizer, chat template and config.
        judge: of references; default: any that JSON has are taken.
        room: for prompt and response; default: what the model's config says.

    Raises:
        NotFoundError, CorruptDataError: the model folder has no tokenizer, or a broken one.
    """
    data, loaded = settings.data, Loaded()
    room = room or Room(context_length(read_json(model / "config.json")))
    try:
        check_responses(settings, room)
    except InvalidInputError as error:
        loaded.fail(error)
    reader = SourceReader(settings, model, load_tokenizer(model), judge, room)
    tables: list[tuple[str, SourceSettings]] = [
        *((f"data.eval.{i}", source) for i, source in enumerate(data.eval)),
        *((f"data.train.{i}", source) for i, source in enumerate(data.train)),
    ]
    for where, source in tables:
        report = SourceReport(where, source.label)
        items: list[Item] = []
        try:
            items = reader.read(source, read_rows(source), report)
            if items:
                check_alike(report, items)
        except RouterShiftError as error:
            named = str(error) if str(error).startswith(where) else f"{where}: {error}"
            loaded.fail(type(error)(named))
        _check_bad_share(loaded, report, data)
        is_train = not isinstance(source, EvalSettings)
        (loaded.train if is_train else loaded.eval).append(items)
        (loaded.report.train if is_train else loaded.report.eval).append(report)
    drop_duplicates(loaded, data)
    if data.eval:
        drop_contaminated(loaded, data)
    else:
        split_off(loaded, data.held_out_share)
    _give_unique_ids(loaded, data)
    note_conflicts(loaded)
    _finish(loaded, data)
    return loaded


def _give_unique_ids(loaded: Loaded, data: DataSettings) -> None:
    """Ids of a column must be unique; those of file and row are made so by the path, where names of files are equal."""
    seen: dict[str, Item] = {}
    for items, report, source in zip(loaded.train, loaded.report.train, data.train, strict=True):
        found = False
        for at, item in enumerate(items):
            name = item.id
            if name in seen and "id" not in source.columns:
                name = next(n for n in (place(item), *(f"{place(item)}#{i}" for i in range(2, 99))) if n not in seen)
                items[at] = item = replace(item, id=name)
            if (first := seen.setdefault(name, item)) is not item:
                reason = f"{place(first)} has the same id; give each row its own, or leave columns.id out"
                bad = BadRow(item.row.file, item.row.number, "id", in_words(name), reason, "the same id")
                report.bad.append(bad)
                found = True
        if found:
            _check_bad_share(loaded, report, data)
        items[:] = [item for item in items if seen[item.id] is item]


def _finish(loaded: Loaded, data: DataSettings) -> None:
    """The last counts, and what they are refused for."""
    for items, report in zip(loaded.train, loaded.report.train, strict=True):
        _count(items, report)
    for items, report in zip(loaded.eval, loaded.report.eval, strict=False):  # a split-off set has no table
        _count(items, report)
        items.sort(key=lambda item: place_in_order(item.key))  # a cap takes the first: whatever order the file has
    if not data.eval:
        loaded.eval[0].sort(key=lambda item: place_in_order(item.key))
    for report in (*loaded.report.train, *loaded.report.eval):
        if not loaded.errors and not report.used and not report.held_out:
            loaded.fail(InvalidInputError(f"{report}: none is left; change what leaves them out"))


def _check_bad_share(loaded: Loaded, report: SourceReport, data: DataSettings) -> None:
    if report.bad and report.bad_share > data.max_bad_share:
        loaded.fail(
            InvalidInputError(
                f"{report.where}: {len(report.bad)} of {report.rows} rows cannot be used, more than "
                f"data.max_bad_share = {data.max_bad_share:g}: {'; '.join(map(str, report.faults()[:_FAULTS_SAID]))}"
            )
        )


def _count(items: Sequence[Item], report: SourceReport) -> None:
    report.used = len(items)
    report.verifiers = Counter(item.verifier for item in items if item.verifier)
    report.environments = Counter(item.environment for item in items if item.environment)
    report.lengths = np.array([item.token_ids.size for item in items], np.int64)
