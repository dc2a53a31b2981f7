"""The first prompts of a run, as the policy would read them, from the first rows of its data."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from statistics import median

from services.cli.dry_run.lines import Kind, Line
from services.cli.judging import make_judge
from services.cli.preflight import longest, treated, treated_rows
from services.cli.recipe import Recipe
from services.curriculum.data.reading import read_rows
from services.curriculum.data.report import SourceReport
from services.curriculum.data.rows import Row
from services.curriculum.data.settings import EvalSettings, SourceSettings
from services.curriculum.data.usable import Room, SourceReader
from services.curriculum.origin import NO_PROMPTS
from services.curriculum.tasks.registry import make_task
from shared.errors import NotFoundError, RouterShiftError
from shared.models.folder import read_json
from shared.models.layout import text_config
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


def read_prompts(recipe: Recipe, model: Path | None, faulty: Collection[str]) -> Prompts:
    """Looks at the task, or at the first rows of every source; nothing of a run's data is raised, each fault is a line.

    Args:
        model: the model folder, or None where it is not here: then there are no token ids.
        faulty: tables whose faults are said already, as data.train.0.
    """
    found = Prompts()
    try:
        if recipe.run.task is not None:
            _task(recipe, recipe.run.task, model, found)
        elif recipe.data.train:
            reader = _reader(recipe, model) if model else None
            for part, sources in (("train", recipe.data.train), ("eval", recipe.data.eval)):
                for index, source in enumerate(sources):
                    _source(recipe, reader, f"data.{part}.{index}", source, found)
        else:
            found.lines.append(Line("MEND", "data", NO_PROMPTS))
    except RouterShiftError as error:
        found.lines.append(Line("MEND", "data", str(error)))
    found.lines = [line for line in found.lines if line.kind != "MEND" or line.text.partition(": ")[0] not in faulty]
    if found.lengths:
        low, high = min(found.lengths), max(found.lengths)
        text = f"the first {len(found.lengths)} prompts have {low} to {high} tokens, median {median(found.lengths):g}"
        found.say("lengths", text)
    return found


def _reader(recipe: Recipe, model: Path) -> SourceReader:
    room = Room(*longest(recipe, text_config(read_json(model / "config.json"))))
    return SourceReader(recipe, model, load_tokenizer(model), make_judge(recipe), room)


def _task(recipe: Recipe, name: str, model: Path | None, found: Prompts) -> None:
    task = make_task(name, recipe.run.seed)
    prompts = [task.train(index).prompt for index in range(_FIRST)]
    found.say("data", f"task {name}, {treated(task.verifier, task.environment)}, without end")
    tokenizer = read_tokenizer(model) if model else None
    ids = [tokenizer.encode(prompt).ids for prompt in prompts] if tokenizer else []
    found.lengths = [len(each) for each in ids]
    _show(found, prompts[0], ids[0] if ids else ())


def _source(recipe: Recipe, reader: SourceReader | None, where: str, source: SourceSettings, found: Prompts) -> None:
    report = SourceReport(where, source.label)
    try:
        rows = read_rows(source)
        first = list(islice(rows, _FIRST))
        count = len(first) + sum(1 for _ in rows)
        found.say("data", f"{where}: {count} rows in {source.source}, {treated_rows(source)}")
        if reader is None:
            columns = next((row.columns for row in first if isinstance(row, Row)), {})
            found.say("data", f"{where}: columns {', '.join(map(str, columns))}")
            return
        items = reader.read(source, first, report)
    except RouterShiftError as error:
        # A data set by name is fetched when the run begins; a file is not.
        comes_later = isinstance(error, NotFoundError) and not is_file(source.source) and not report.rows
        named = str(error) if str(error).startswith(where) else f"{where}: {error}"
        found.lines.append(Line("note" if comes_later else "MEND", "data", named))
        return
    if report.unread:
        found.say("data", f"{where}: {report.unread_in_words}")
    _say_faults(report, recipe.data.max_bad_share, found)
    if items and not isinstance(source, EvalSettings):
        found.lengths += [item.token_ids.size for item in items]
        _show(found, report.first_prompt, report.first_token_ids)


def _say_faults(report: SourceReport, max_bad_share: float, found: Prompts) -> None:
    """Faults are to be mended where a start would be refused for that share of them, else notes."""
    kind: Kind = "MEND" if report.bad_share > max_bad_share else "note"
    faults = report.faults()
    for fault in faults[:_SHOWN_FAULTS]:
        found.lines.append(Line(kind, "data", f"{report.where}: {fault}"))
    if more := sum(len(fault.rows) for fault in faults[_SHOWN_FAULTS:]):
        text = f"{more} more of the first {report.rows} rows cannot be used; `routershift data check` lists them"
        found.lines.append(Line(kind, "data", f"{report.where}: {text}"))


def _show(found: Prompts, text: str, ids: Sequence[int]) -> None:
    found.say("prompt", repr(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."))
    if ids:
        more = f" and {len(ids) - _SHOWN_IDS} more" if len(ids) > _SHOWN_IDS else ""
        found.say("prompt", f"token ids {list(ids[:_SHOWN_IDS])}{more}")
