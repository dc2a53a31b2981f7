"""The first prompts of a run, as the policy would read them, from the first rows of its data."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from statistics import median
from typing import Any

from services.cli.dry_run.lines import Kind, Line
from services.cli.judging import make_judge
from services.cli.recipe import Recipe
from services.curriculum.data.items import Item, ItemMaker
from services.curriculum.data.loading import Judge
from services.curriculum.data.reading import read_rows
from services.curriculum.data.rows import BadRow, Row
from services.curriculum.data.settings import EvalSettings, SourceSettings
from services.curriculum.origin import NO_PROMPTS
from services.curriculum.tasks.registry import make_task
from shared.errors import NotFoundError, RouterShiftError
from shared.models.tokenizer import load_tokenizer, read_tokenizer
from shared.sources import is_file

_FIRST = 64  # rows of each source, or prompts of a task
_SHOWN_IDS = 64
_SHOWN_CHARACTERS = 2000
_SHOWN_FAULTS = 3


@dataclass
class Prompts:
    """What was found: lines for the plan, and the lengths of training prompts in tokens."""

    lines: list[Line] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def say(self, about: str, text: str) -> None:
        self.lines.append(Line("", about, text))


class _Tools:
    """What all sources are read with; made when the first of them needs it."""

    def __init__(self, recipe: Recipe, model: Path | None) -> None:
        self.model = model
        self.max_bad_share = recipe.data.max_bad_share
        self._recipe = recipe

    @cached_property
    def judge(self) -> Judge:
        return make_judge(self._recipe)

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.model) if self.model else None


def read_prompts(recipe: Recipe, model: Path | None) -> Prompts:
    """Looks at the task, or at the first rows of every source; nothing of a run's data is raised, each fault is a line.

    Args:
        model: the model folder, or None where it is not here: then there are no token ids.
    """
    found, tools = Prompts(), _Tools(recipe, model)
    try:
        if recipe.run.task is not None:
            _task(recipe, recipe.run.task, model, found)
        elif recipe.data.train:
            for part, sources in (("train", recipe.data.train), ("eval", recipe.data.eval)):
                for index, source in enumerate(sources):
                    _source(tools, f"data.{part}.{index}", source, found)
        else:
            found.lines.append(Line("MEND", "data", NO_PROMPTS))
    except RouterShiftError as error:
        found.lines.append(Line("MEND", "data", str(error)))
    if found.lengths:
        low, high = min(found.lengths), max(found.lengths)
        text = f"the first {len(found.lengths)} prompts have {low} to {high} tokens, median {median(found.lengths):g}"
        found.say("lengths", text)
    return found


def _task(recipe: Recipe, name: str, model: Path | None, found: Prompts) -> None:
    task = make_task(name, recipe.run.seed)
    prompts = [task.train(index).prompt for index in range(_FIRST)]
    found.say("data", f"task {name}, judged by {task.verifier}, without end")
    tokenizer = read_tokenizer(model) if model else None
    ids = [tokenizer.encode(prompt).ids for prompt in prompts] if tokenizer else []
    found.lengths = [len(each) for each in ids]
    _show(found, prompts[0], ids[0] if ids else ())


def _source(tools: _Tools, where: str, source: SourceSettings, found: Prompts) -> None:
    try:
        rows = read_rows(source)
        first = list(islice(rows, _FIRST))
        count = len(first) + sum(1 for _ in rows)
    except NotFoundError as error:
        # A data set by name is fetched when the run begins; a file is not.
        kind: Kind = "MEND" if is_file(source.source) else "note"
        found.lines.append(Line(kind, "data", f"{where}: {error}"))
        return
    except RouterShiftError as error:
        found.lines.append(Line("MEND", "data", f"{where}: {error}"))
        return
    found.say("data", f"{where}: {count} rows in {source.source}, judged by {source.verifier or 'what each row names'}")
    if tools.model is None:
        columns = next((row.columns for row in first if isinstance(row, Row)), {})
        found.say("data", f"{where}: columns {', '.join(map(str, columns))}")
        return
    try:
        made = list(ItemMaker(source, where, tools.tokenizer, tools.model).make(first))
    except RouterShiftError as error:
        found.lines.append(Line("MEND", "data", str(error)))
        return
    items = [each for each in made if isinstance(each, Item)]
    _say_faults(tools, where, [each for each in made if isinstance(each, BadRow)], items, len(first), found)
    if items and not isinstance(source, EvalSettings):
        found.lengths += [item.token_ids.size for item in items]
        ids: Sequence[int] = items[0].token_ids.tolist()
        _show(found, tools.tokenizer.decode(ids), ids)


def _say_faults(
    tools: _Tools, where: str, bad: Sequence[BadRow], items: Sequence[Item], rows: int, found: Prompts
) -> None:
    """Faults are to be mended where a start would be refused for that share of them, else notes."""
    misread = (
        f"{item.row.file} row {item.row.number}: verifier {item.verifier}: {reason}"
        for item in items
        if (reason := tools.judge(item.verifier, item.reference))
    )
    faults = [*chain(map(str, bad), misread)]
    kind: Kind = "MEND" if len(faults) > tools.max_bad_share * rows else "note"
    for fault in faults[:_SHOWN_FAULTS]:
        found.lines.append(Line(kind, "data", f"{where}: {fault}"))
    if (more := len(faults) - _SHOWN_FAULTS) > 0:
        text = f"{where}: {more} more of the first {rows} rows cannot be used; `routershift data check` lists them"
        found.lines.append(Line(kind, "data", text))


def _show(found: Prompts, text: str, ids: Sequence[int]) -> None:
    found.say("prompt", repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."))
    if ids:
        more = f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
        found.say("prompt", f"token ids {list(ids[:_SHOWN_IDS])}{more}")
