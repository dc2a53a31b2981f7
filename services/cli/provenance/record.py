"""What made a run, in its folder: recipe.toml starts it again, provenance.json says on what and from what it ran.

docs/reference/provenance.md describes the keys.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from services.cli.provenance import stored
from services.cli.provenance.environment import environment
from services.cli.provenance.files import contents, model
from services.cli.provenance.settings import flat, plain, recipe_toml
from services.cli.recipe import Recipe
from services.cli.tables import tables
from services.learner.checkpointing.checkpoint import step_of
from shared.errors import InvalidInputError
from shared.files import write_durably
from shared.resuming import Rule, differing, has_rule, rule_of, without_numbers
from shared.tracking import records

_MODEL = "run.model"
_SHOWN_CHARACTERS = 12  # of a digest


@dataclass(frozen=True, slots=True)
class Change:
    """A setting, or the content that it names, that differs from the start before."""

    setting: str
    rule: Rule
    before: str  # in words, as is now
    now: str

    def __str__(self) -> str:
        return f"{self.setting} is {self.now}, and was {self.before}"

    def as_record(self) -> dict[str, str]:
        return {"setting": self.setting, "before": self.before, "now": self.now}


@dataclass(frozen=True, slots=True)
class Start:
    """A start that may go on, and is not written down yet."""

    recipe: Recipe
    before: Mapping[str, Any] | None  # what was written at the start before
    now: Mapping[str, Any]  # settings, model and files
    changes: Sequence[Change]

    def write(self, command: str, recipe_file: Path | None) -> None:
        """Adds this start to the run's folder. Raises OSError where the disk takes no writes."""
        folder, around = self.recipe.run.path, environment()
        changed = [change.as_record() for change in self.changes]
        earlier = self.before["environment"] if self.before else None
        start = start_entry(folder, command, recipe_file, changed, earlier, around)
        write(folder, self.recipe, self.now, self.before, around, start=start)


def prepare(recipe: Recipe) -> Start:
    """Compares a start with the one before; writes nothing.

    Before a run has been evaluated or trained for the first time, there is nothing to spoil, and everything may differ.

    Raises:
        InvalidInputError: settings differ that would make another run of it; names them all.
        CorruptDataError: provenance.json cannot be read, or data cannot.
        NotFoundError: a file that settings name.
    """
    folder = recipe.run.path
    before = stored.read(folder)
    now = made_of(recipe, before)
    changes = changes_between(before, now) if before else []
    refused = [change for change in changes if change.rule is not Rule.KNOB]
    if refused and has_begun(folder):
        raise InvalidInputError(
            f"run {recipe.run.id} cannot go on with other settings: {'; '.join(map(str, refused))}. Set them back, "
            f"take another run.id, or begin a run from a checkpoint of this one with `routershift fork {recipe.run.id}`"
        )
    return Start(recipe, before, now, changes)


def made_of(recipe: Recipe, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """Settings, model and files of a recipe, as they are now. Raises as `prepare`.

    Args:
        before: an earlier record, whose counts of rows hold for files of the same content.
    """
    return {
        "settings": plain(recipe),
        "model": model(recipe.run),
        "files": contents(recipe, before["files"] if before else {}),
    }


def write(
    folder: Path,
    recipe: Recipe,
    made: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    around: Mapping[str, Any],
    *,
    start: Mapping[str, Any] | None = None,
    parent: Mapping[str, Any] | None = None,
) -> None:
    """Replaces both files.

    Args:
        made: settings, model and files.
        before: what was written before; None at the first time.
        around: what `environment` found.
        start: what is added to the starts; None for a run that is only made.
        parent: the run and the step that it was forked from, at the first time.
    """
    record = {
        "schema": stored.SCHEMA,
        "run": recipe.run.id,
        "created": before["created"] if before else stored.now(),
        "parent": before["parent"] if before else parent,
        **made,
        "environment": around,
        "starts": [*(before["starts"] if before else ()), *([start] if start else ())],
    }
    stored.save(folder, record)
    write_durably(folder / stored.RECIPE, recipe_toml(recipe))


def start_entry(
    folder: Path,
    command: str,
    recipe_file: Path | None,
    settings_changed: Sequence[Mapping[str, Any]],
    earlier: Mapping[str, Any] | None,
    around: Mapping[str, Any],
) -> dict[str, Any]:
    """A start, as it stands among the starts of a record.

    Args:
        earlier, around: what `environment` found at the start before, None for none, and now.
    """
    moved = differing(flat(earlier), flat(around)) if earlier else ()
    return {
        "time": stored.now(),
        "command": command,
        "recipe": str(recipe_file.absolute()) if recipe_file else None,
        "step": checkpointed_step(folder) or 0,
        "settings_changed": list(settings_changed),
        "environment_changed": [{"name": name, "before": was, "now": value} for name, was, value in moved],
    }


def has_begun(folder: Path) -> bool:
    """Whether something is there that other settings could spoil: an evaluation, a step or a checkpoint."""
    left = (folder / records.EVALUATIONS, folder / records.LEARNER)
    return any(file.is_file() for file in left) or checkpointed_step(folder) is not None


def checkpointed_step(folder: Path) -> int | None:
    """The step of the newest checkpoint; None where there is none."""
    return max(map(step_of, (folder / records.CHECKPOINTS).glob("step-*")), default=None)


def changes_between(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs between two records, or two parts of such with settings, model and files.

    What a setting names counts by its content: a model or a file of data may move.
    """
    files = {name: (before["files"].get(name), now["files"].get(name)) for name in before["files"] | now["files"]}
    return list(_changes(before, now, files))


def _changes(
    before: Mapping[str, Any], now: Mapping[str, Any], files: Mapping[str, tuple[Any, Any]]
) -> Iterator[Change]:
    digests = [each["model"]["fingerprint"] for each in (before, now)]
    if None not in digests and digests[0] != digests[1]:  # a service that has no model has told of the rest
        yield Change(_MODEL, rule_of(_MODEL), _model_in_words(before["model"]), _model_in_words(now["model"]))
    for name, (old, new) in sorted(files.items()):
        if old is not None and new is not None and _digests(old) != _digests(new):
            yield Change(name, rule_of(name), _files_in_words(old), _files_in_words(new))
    known = flat(before["settings"])
    for name, was, value in differing(known, flat(now["settings"])):
        has_moved = name == _MODEL or all(files.get(name, (None, None)))
        # Another version of RouterShift may have had fewer settings, or more; a service alone tells of its own tables.
        is_newer = name not in known and value == _defaults().get(without_numbers(name))
        is_newer |= name.partition(".")[0] not in before["settings"]
        if not has_moved and not is_newer and has_rule(name):
            yield Change(name, rule_of(name), _in_words(was), _in_words(value))


@cache
def _defaults() -> Mapping[str, Any]:
    return {key.path: key.default for table in tables(Recipe) for key in table.keys}


def _digests(files: list[dict[str, Any]]) -> list[str]:
    return [file["sha256"] for file in files]


def _files_in_words(files: list[dict[str, Any]]) -> str:
    return ", ".join(
        f"{file['path']} (SHA-256 {file['sha256'][:_SHOWN_CHARACTERS]}"
        + (f", {file['rows']} rows)" if "rows" in file else ")")
        for file in files
    )


def _model_in_words(known: Mapping[str, str]) -> str:
    return f"{known['folder']} (fingerprint {known['fingerprint'][:_SHOWN_CHARACTERS]})"


def _in_words(value: Any) -> str:
    return "unset" if value is None else str(value) if isinstance(value, str) else records.dumps(value)
