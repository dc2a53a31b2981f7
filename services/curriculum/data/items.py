"""From a row to what is trained on: prompt, reference, verifier and token ids."""

import hashlib
import json
import math
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from routershift.client.requests import Message
from services.curriculum.data import conversations
from services.curriculum.data.conversations import Renderer
from services.curriculum.data.rows import BadRow, Row, RowError
from services.curriculum.data.settings import ROLES, SourceSettings
from services.curriculum.data.templates import Reader, Templates
from services.curriculum.problems import Problem

_DEEPEST = 24  # protobuf reads messages up to 100 in each other, of which a table takes three
_LARGEST = 2**53  # whole numbers beyond are not all doubles
_HALVES = "half a character"  # kind of fault
_AND_REFERENCE = "\n"  # in a key; what is normalised has no such line end
_BATCH = 256  # prompts that are tokenized at once


@dataclass(frozen=True, slots=True)
class Item:
    """A row that can be used. Token ids are held compactly: a data set has many."""

    row: Row
    id: str
    prompt: str  # what verifiers see: the words of the conversation, without the system's and without the template's
    key: str  # of the problem: rows that have the same key are the same problem
    variant: str  # hash of what else a row asks: rows of one problem are duplicates where it is the same
    reference: Mapping[str, Any]
    verifier: str
    priority: float
    token_ids: NDArray[np.int32]  # of the rendered prompt; without the tools of the environment, where it has some
    environment: str = ""  # that responses are episodes of
    messages: tuple[Message, ...] = ()  # the conversation, for an environment to render

    @property
    def said(self) -> str:
        """What the problem says, normalised: the key without what an episode begins from."""
        return self.key.partition(_AND_REFERENCE)[0]

    def problem(self) -> Problem:
        return Problem(
            prompt=self.prompt,
            reference=self.reference,
            verifier=self.verifier,
            id=self.id,
            token_ids=() if self.messages else tuple(self.token_ids.tolist()),
            environment=self.environment,
            messages=self.messages,
            priority=self.priority,
        )


class Left:
    """A row that the filter of its source leaves out."""


@dataclass(frozen=True, slots=True)
class _Draft:
    """An item whose prompt is rendered and not tokenized yet."""

    row: Row
    rendered: str
    id: str
    prompt: str
    key: str
    variant: str
    reference: Mapping[str, Any]
    verifier: str
    priority: float
    messages: tuple[Message, ...]


class ItemMaker:
    """Makes the items of one source."""

    def __init__(self, settings: SourceSettings, where: str, tokenizer: Any, model: Path) -> None:
        """Args: where: the table, as data.train.0. tokenizer: of transformers. model: its folder.

        Raises:
            InvalidInputError: a template or an expression of the table is none.
            PreconditionError, NotFoundError: see `Renderer`.
            MissingDependencyError: jinja2 is not installed.
        """
        templates = Templates()
        self._settings = settings
        self._renderer = Renderer(settings, where, tokenizer, model)
        self._columns: dict[str, Reader] = {
            name: templates.column(f"{where}.columns.{name}", text) for name, text in settings.columns.items()
        }
        self._template = None if settings.prompt is None else templates.template(f"{where}.prompt", settings.prompt)
        self._filter = None if settings.filter is None else templates.expression(f"{where}.filter", settings.filter)
        self._tools = None if settings.tools is None else templates.column(f"{where}.tools", settings.tools)
        texts = [settings.prompt, settings.filter and f"{{{{ {settings.filter} }}}}", settings.tools]
        self._read = set().union(*(templates.names(text) for text in (*settings.columns.values(), *texts) if text))
        of_prompt = {"prompt", *templates.names(settings.columns["prompt"])} if "prompt" in settings.columns else set()
        self._beside = sorted(templates.names(settings.prompt or "{{ prompt }}") - of_prompt)
        self._is_left_to_environment = settings.environment is not None and settings.chat_template is not False
        self._where = where

    def unread(self, columns: Iterable[str]) -> list[str]:
        """Those of these columns that nothing of the table reads."""
        return [] if "row" in self._read else [name for name in columns if name not in self._read]

    def make(self, rows: Iterable[Row | BadRow]) -> Iterator[Item | BadRow | Left]:
        """One for each row, in order."""
        drafts = (self._draft_or_fault(row) for row in rows)
        while batch := list(islice(drafts, _BATCH)):
            ids = iter(self._renderer.encode([draft.rendered for draft in batch if isinstance(draft, _Draft)]))
            for draft in batch:
                yield self._item(draft, next(ids)) if isinstance(draft, _Draft) else draft

    def _item(self, draft: _Draft, ids: list[int]) -> Item | BadRow:
        if not ids:
            return RowError(self._named("prompt"), "the prompt has no tokens; fill it", draft.prompt).of(draft.row)
        return Item(
            draft.row, draft.id, draft.prompt, draft.key, draft.variant, draft.reference, draft.verifier,
            draft.priority, np.array(ids, np.int32), self._settings.environment or "", draft.messages,
        )  # fmt: skip

    def _draft_or_fault(self, row: Row | BadRow) -> _Draft | BadRow | Left:
        if isinstance(row, BadRow):
            return row
        try:
            return self._draft(row)
        except RowError as fault:
            if fault.column == conversations.PROMPT:
                fault.column = self._named("prompt")
            return fault.of(row)

    def _draft(self, row: Row) -> _Draft | Left:
        if self._filter is not None and not self._filter(row.columns):
            return Left()
        named = {name: read(row.columns) for name, read in self._columns.items()}
        raw = named.get("prompt")
        prompt = raw
        if self._template is not None:
            prompt = self._template({**row.columns, "prompt": raw} if "prompt" in named else row.columns)
        if isinstance(prompt, str | None) and not (prompt or "").strip():
            raise RowError(self._named("prompt"), "the row has no prompt; fill it, or leave the row out by `filter`")
        messages = conversations.conversation(prompt, self._settings.system)
        tools = conversations.as_tools(self._tools(row.columns)) if self._tools else None
        words, rendered = conversations.said(messages), self._renderer.render(messages, tools)
        problem = named.get("problem", raw)
        key = normalised(problem if isinstance(problem, str) else words)
        reference = self._reference(named)
        if self._settings.environment is not None and "problem" not in named:
            # The prompt may be the same for every maze: only with what episodes begin from is it one problem.
            key += _AND_REFERENCE + json.dumps(reference, sort_keys=True)
        identity = self._id(row, named)
        for field, text in (("prompt", rendered), ("prompt", words), ("problem", key), ("id", identity)):
            try:
                _check_text(text)
            except ValueError as error:
                raise RowError(self._named(field), f"{error}; mend the text", text, _HALVES) from None
        verifier = self._verifier(named)
        # What the prompt has from other columns, as a passage that a question is about, and how a response is judged.
        beside = [words] if "row" in self._beside else [row.columns.get(name) for name in self._beside]
        return _Draft(
            row=Row(row.file, row.number, {}),  # its columns may be large, and are not needed any more
            rendered=rendered,
            id=identity,
            prompt=words,
            key=key,
            variant=_hash([beside if raw is not None else [], tools, verifier, self._settings.environment, reference]),
            reference=reference,
            verifier=verifier,
            priority=self._priority(named),
            messages=conversations.plain(messages) if self._is_left_to_environment else (),
        )

    def _named(self, field: str) -> str:
        """The column that a field is read from, for messages; the setting where that is an expression."""
        column = self._settings.columns.get(field, field)
        return f"{self._where}.columns.{field}" if "{{" in column or "{%" in column else column

    def _reference(self, named: Mapping[str, Any]) -> Mapping[str, Any]:
        """The reference of a row: {"answer": value} of a value alone, and the fields beside it."""
        reference: dict[str, Any] = {}
        if "reference" in named:
            whole = self._plain("reference", named["reference"])
            reference |= whole if isinstance(whole, dict) else {"answer": whole}
        fields = {name: value for name, value in named.items() if name not in ROLES}
        return reference | {name: self._plain(name, value) for name, value in fields.items()}

    def _plain(self, field: str, value: Any) -> Any:
        """As JSON has it. Raises RowError for what is not there, or what JSON does not have."""
        if value is None or value == [] or value == {} or (isinstance(value, str) and not value.strip()):
            raise RowError(
                self._named(field), f"the row has no {field}; fill it, or leave the row out by `filter`", value
            )
        try:
            return plain(value)
        except ValueError as error:
            reason = f"{error}; expected JSON values: text, numbers, lists, tables"
            raise RowError(self._named(field), reason, value, "no JSON value") from None

    def _verifier(self, named: Mapping[str, Any]) -> str:
        verifier = named.get("verifier", self._settings.verifier)
        if verifier is None and self._settings.environment is not None:
            return ""  # the environment rewards
        if not isinstance(verifier, str) or not verifier:
            raise RowError(self._named("verifier"), "expected the name of a verifier; mend the row", verifier)
        return verifier

    def _priority(self, named: Mapping[str, Any]) -> float:
        if "priority" not in named:
            return 1.0
        try:
            value = float(named["priority"])
        except (TypeError, ValueError):
            value = math.nan
        if not 0 <= value <= 1:
            raise RowError(
                self._named("priority"),
                "expected a number, 0 to 1; scale it, as by {{ score / 10 }}",
                named["priority"],
            )
        return value

    def _id(self, row: Row, named: Mapping[str, Any]) -> str:
        if "id" not in named:
            return f"{Path(row.file).name}:{row.number}"
        value = named["id"]
        if not isinstance(value, str | int) or isinstance(value, bool) or value == "":
            raise RowError(self._named("id"), "expected text or a whole number; name another column", value)
        return str(value)


def _check_text(text: str) -> None:
    """Raises ValueError for what UTF-8 does not have: half a character, as JSON can write it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of one (a lone surrogate)") from None


def _hash(value: Any) -> str:
    """Takes lists, tables and whatever else has a form as text."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def normalised(text: str) -> str:
    """For comparing problems: without regard to case, to white space, and to how Unicode writes a character."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def plain(value: Any, depth: int = 0) -> Any:
    """A value as JSON has it; dates and decimals become text.

    Raises:
        ValueError: bytes, a number that is none or that JSON's do not hold, half a character, or another type.
    """
    if depth > _DEEPEST:
        raise ValueError(f"a value has more than {_DEEPEST} tables and lists in each other")
    if isinstance(value, str):
        _check_text(value)
        return value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        if abs(value) > _LARGEST:
            raise ValueError(f"{str(value)[:40]} would lose digits; make it text, as by {{{{ ... | string }}}}")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{value} is no number")
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(each, depth + 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each, depth + 1) for each in value]
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, np.generic | np.ndarray):
        return plain(value.tolist(), depth)
    raise ValueError(f"a value is of type {type(value).__name__}")
