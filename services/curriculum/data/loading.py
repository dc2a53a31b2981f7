"""Reads all sources of a recipe, leaves out what cannot or must not be used, and says what it found."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from services.curriculum.data.items import Item, ItemMaker, Left
from services.curriculum.data.overlap import (
    Loaded,
    drop_contaminated,
    drop_duplicates,
    place,
    place_in_order,
    split_off,
)
from services.curriculum.data.reading import read_rows
from services.curriculum.data.report import SourceReport
from services.curriculum.data.rows import BadRow, in_words
from services.curriculum.data.settings import DataSettings, EvalSettings, SourceSettings
from services.curriculum.settings import Settings
from shared.errors import InvalidInputError, RouterShiftError
from shared.models.folder import read_json
from shared.models.layout import context_length
from shared.models.tokenizer import load_tokenizer

# Says why a verifier cannot read a reference; None where it can.
Judge = Callable[[str, Mapping[str, Any]], str | None]

HELD_OUT = "held-out"  # the name of the set that is split off the training rows
_TYPES = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a table"}


def load(settings: Settings, model: Path, judge: Judge | None = None) -> Loaded:
    """Reads every row. What is wrong with a source is in `errors`, so that one does not hide the next.

    Args:
        settings: with tables [[data.train]].
        model: folder with tokenizer, chat template and config.
        judge: of references; default: any that JSON has are taken.

    Raises:
        NotFoundError, CorruptDataError: the model folder has no tokenizer, or a broken one.
    """
    data, loaded = settings.data, Loaded()
    tokenizer = load_tokenizer(model)
    longest = context_length(read_json(model / "config.json"))
    tables: list[tuple[str, SourceSettings]] = [
        *((f"data.eval.{i}", source) for i, source in enumerate(data.eval)),
        *((f"data.train.{i}", source) for i, source in enumerate(data.train)),
    ]
    for where, source in tables:
        report = SourceReport(where, source.label)
        responses = settings.rollout.max_tokens
        if isinstance(source, EvalSettings):
            responses = source.sampling.max_tokens or responses
        items: list[Item] = []
        try:
            made = ItemMaker(source, where, tokenizer, model).make(read_rows(source))
            items = _usable(made, report, data.max_prompt_tokens, longest and longest - responses, judge)
        except RouterShiftError as error:
            loaded.fail(type(error)(f"{where}: {error}"))
        _check_bad_share(loaded, report, data)
        if items:
            report.first_prompt = tokenizer.decode(items[0].token_ids.tolist())
            report.first_token_ids = tuple(items[0].token_ids.tolist())
            _check_alike(loaded, report, items)
        is_train = not isinstance(source, EvalSettings)
        (loaded.train if is_train else loaded.eval).append(items)
        (loaded.report.train if is_train else loaded.report.eval).append(report)
    drop_duplicates(loaded, data)
    if data.eval:
        drop_contaminated(loaded, data)
    else:
        split_off(loaded, data.held_out_share)
    _give_unique_ids(loaded, data)
    _finish(loaded, data)
    return loaded


def _usable(
    made: Iterator[Item | BadRow | Left],
    report: SourceReport,
    most: int | None,
    room: int | None,
    judge: Judge | None,
) -> list[Item]:
    """Counts every row, and gives those that fit the model and whose references are of one kind."""
    items = []
    for each in made:
        report.rows += 1
        if isinstance(each, Left):
            report.filtered += 1
        elif isinstance(each, BadRow):
            report.bad.append(each)
        elif most is not None and each.token_ids.size > most:
            report.too_long += 1
            report.note("too_long", f"{place(each)}: {each.token_ids.size} tokens")
        elif fault := _unfit(each, room) or _misread(each, judge):
            report.bad.append(fault)
        else:
            items.append(each)
    return _of_one_type(items, report)


def _check_alike(loaded: Loaded, report: SourceReport, items: Sequence[Item]) -> None:
    """Refuses prompts that read the same where their references differ: a template that names no column."""
    first = items[0]
    if any(not np.array_equal(item.token_ids, first.token_ids) for item in items):
        return
    if any(item.reference != first.reference for item in items):
        loaded.fail(
            InvalidInputError(
                f"{report.where}: all {len(items)} prompts read the same, {in_words(report.first_prompt)}, and their "
                "references differ; name the columns of the problem in `prompt`, or mend `chat_template`"
            )
        )


def _unfit(item: Item, room: int | None) -> BadRow | None:
    if room is None or item.token_ids.size <= room:
        return None
    reason = (
        f"the prompt has {item.token_ids.size} tokens, and beside the longest response the model has room for {room}; "
        "set data.max_prompt_tokens to leave such rows out, or a smaller max_tokens"
    )
    return BadRow(item.row.file, item.row.number, "prompt", in_words(item.prompt), reason)


def _misread(item: Item, judge: Judge | None) -> BadRow | None:
    reason = judge(item.verifier, item.reference) if judge else None
    if reason is None:
        return None
    reason = f"verifier {item.verifier} cannot read it: {reason}"
    return BadRow(item.row.file, item.row.number, "reference", in_words(dict(item.reference)), reason)


def _of_one_type(items: list[Item], report: SourceReport) -> list[Item]:
    """Leaves out rows in which a field of the reference has another type than in most rows."""
    seen: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for item in items:
        for name, value in item.reference.items():
            seen[item.verifier, name][_TYPES.get(type(value), "nothing")] += 1
    usual = {key: types.most_common(1)[0][0] for key, types in seen.items() if len(types) > 1}
    if not usual:
        return items
    kept = []
    for item in items:
        for name, value in item.reference.items():
            kind, expected = _TYPES.get(type(value), "nothing"), usual.get((item.verifier, name))
            if expected is not None and kind != expected:
                reason = (
                    f"it is {kind}, and {expected} in most rows; make it one type, as by a filter | string or | int"
                )
                report.bad.append(BadRow(item.row.file, item.row.number, name, in_words(value), reason))
                break
        else:
            kept.append(item)
    return kept


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
                report.bad.append(BadRow(item.row.file, item.row.number, "id", in_words(name), reason))
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
                f"data.max_bad_share = {data.max_bad_share:g}: {'; '.join(map(str, report.bad[:3]))}"
            )
        )


def _count(items: Sequence[Item], report: SourceReport) -> None:
    report.used = len(items)
    report.verifiers = Counter(item.verifier for item in items)
    report.lengths = np.array([item.token_ids.size for item in items], np.int64)
