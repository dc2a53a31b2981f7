"""Reads one source: the rows that can be used as they are, and a report on the others."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from services.curriculum.data.items import Item, ItemMaker, Left
from services.curriculum.data.overlap import place
from services.curriculum.data.report import SourceReport
from services.curriculum.data.rows import BadRow, Row, in_words
from services.curriculum.data.settings import EvalSettings, SourceSettings
from services.curriculum.settings import Settings
from shared.errors import InvalidInputError, NotFoundError
from shared.sources import PROCEDURAL


class Judge(Protocol):
    """Says why a reference cannot be used; None where it can."""

    def __call__(self, verifier: str, reference: Mapping[str, Any], environment: str = "", /) -> str | None:
        """Whether the verifier can read it and an episode of the environment can begin from it, as far as named.

        Raises:
            NotFoundError: there is no verifier, or no environment, of that name.
            InvalidInputError: no verifier is named, and the environment does not reward.
        """
        ...


_TYPES = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "a table"}


class Room(NamedTuple):
    """How long a sequence of prompt and response may be; `source` is what says so, for messages."""

    tokens: int | None  # None: only the engine can tell
    source: str = "the model's max_position_embeddings"


class SourceReader:
    """Reads sources of one recipe with one tokenizer."""

    def __init__(self, settings: Settings, model: Path, tokenizer: Any, judge: Judge | None, room: Room) -> None:
        self._settings = settings
        self._model = model
        self._tokenizer = tokenizer
        self._judge = judge
        self._room = room

    def read(self, source: SourceSettings, rows: Iterable[Row | BadRow], report: SourceReport) -> list[Item]:
        """The items that can be used; what cannot goes into the report, also where the source as a whole is refused.

        Raises:
            InvalidInputError: a template or an expression of the table is none.
            NotFoundError: no verifier has the name that the source says, or a chat template is not there.
            PreconditionError: a chat template that is none.
            RouterShiftError: what the reader of the rows raises.
        """
        maker = ItemMaker(source, report.where, self._tokenizer, self._model)
        columns: dict[str, None] = {}
        items = self._usable(maker.make(_seen(rows, columns)), source, report)
        items = _of_one_type(items, report)
        if items:
            report.unread = [] if source.source.startswith(PROCEDURAL) else maker.unread(columns)
            report.first_token_ids = tuple(items[0].token_ids.tolist())
            report.first_prompt = self._tokenizer.decode(list(report.first_token_ids))
        return items

    def _for_prompts(self, source: SourceSettings) -> int | None:
        """Tokens that the longest response leaves for a prompt; None where it leaves none, which is no row's fault."""
        response = self._settings.rollout.max_tokens
        if isinstance(source, EvalSettings):
            response = source.sampling.max_tokens or response
        return None if self._room.tokens is None or response >= self._room.tokens else self._room.tokens - response

    def _usable(self, made: Iterator[Item | BadRow | Left], source: SourceSettings, report: SourceReport) -> list[Item]:
        """Counts every row, and gives those that fit the model and whose verifier can read their reference."""
        items, most, room = [], self._settings.data.max_prompt_tokens, self._for_prompts(source)
        for each in made:
            report.rows += 1
            if isinstance(each, Left):
                report.filtered += 1
            elif isinstance(each, BadRow):
                report.bad.append(each)
            elif most is not None and each.token_ids.size > most:
                report.too_long += 1
                report.note("too_long", f"{place(each)}: {each.token_ids.size} tokens")
            elif fault := _unfit(each, room) or self._misread(each, source):
                report.bad.append(fault)
            else:
                items.append(each)
        return items

    def _misread(self, item: Item, source: SourceSettings) -> BadRow | None:
        if self._judge is None:
            return None
        try:
            reason = self._judge(item.verifier, item.reference, *([item.environment] if item.environment else []))
        except NotFoundError as error:
            if "verifier" not in source.columns:
                raise
            reason = f"{error}; or set `verifier` of the table, which then judges every row"
            return BadRow(item.row.file, item.row.number, "verifier", in_words(item.verifier), reason)
        if reason is None:
            return None
        judges = f"verifier {item.verifier}" if item.verifier else f"environment {item.environment}"
        kind = f"{judges} cannot read it"
        value = in_words(dict(item.reference))
        return BadRow(item.row.file, item.row.number, "reference", value, f"{kind}: {reason}", kind)


def check_responses(settings: Settings, room: Room) -> None:
    """Raises InvalidInputError where the longest response takes all there is; names the first setting that says so."""
    for setting, most in _response_lengths(settings):
        if room.tokens is not None and most >= room.tokens:
            raise InvalidInputError(
                f"{setting} is {most}, and {room.source} leaves room for {room.tokens} tokens of prompt and response "
                f"together; set {setting} below {room.tokens}"
            )


def _response_lengths(settings: Settings) -> Iterator[tuple[str, int]]:
    """The settings that say how long responses may be, those of held-out sets among them."""
    yield "rollout.max_tokens", settings.rollout.max_tokens
    held_out = {"curriculum.evaluation": settings.curriculum.evaluation.sampling}
    held_out |= {f"data.eval.{index}": source.sampling for index, source in enumerate(settings.data.eval)}
    for setting, sampling in held_out.items():
        if sampling.max_tokens is not None:
            yield f"{setting}.sampling.max_tokens", sampling.max_tokens


def check_alike(report: SourceReport, items: Sequence[Item]) -> None:
    """Refuses prompts that read the same where their references differ: a template that names no column.

    Not those of an environment, which may say the problem itself.

    Raises:
        InvalidInputError: names the prompt and the fix.
    """
    first = items[0]
    if first.environment or any(not np.array_equal(item.token_ids, first.token_ids) for item in items):
        return
    if any(item.reference != first.reference for item in items):
        raise InvalidInputError(
            f"all {len(items)} prompts read the same, {in_words(report.first_prompt)}, and their references differ; "
            "name the columns of the problem in `prompt`, or mend `chat_template`"
        )


def _seen(rows: Iterable[Row | BadRow], columns: dict[str, None]) -> Iterator[Row | BadRow]:
    """The rows; the names of their columns are in `columns` then."""
    for row in rows:
        if isinstance(row, Row):
            columns.update(dict.fromkeys(row.columns))
        yield row


def _unfit(item: Item, room: int | None) -> BadRow | None:
    if room is None or item.token_ids.size <= room:
        return None
    reason = (
        f"the prompt has {item.token_ids.size} tokens, and beside the longest response the model has room for {room}; "
        "set data.max_prompt_tokens to leave such rows out, or a smaller max_tokens"
    )
    return BadRow(item.row.file, item.row.number, "prompt", in_words(item.prompt), reason, "the prompt is too long")


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
