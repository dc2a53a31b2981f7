"""The content of what settings name: the model, data and code of verifiers."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from services.cli.recipe import Recipe
from services.curriculum.data.files import find_files, read_file
from services.learner.checkpointing.identity import fingerprint
from shared.files import sha256
from shared.settings import RunSettings
from shared.sources import is_file

_ROWS_KEY = "rows"


def model(run: RunSettings) -> dict[str, Any]:
    """The folder of the model and its fingerprint; of a name on the Hugging Face Hub, its commit as well."""
    folder = run.require_model()
    about = {"folder": str(folder.absolute()), "fingerprint": fingerprint(folder)}
    return about if isinstance(run.model, Path) else {"name": run.model, "revision": folder.name, **about}


def contents(recipe: Recipe, known: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The files that settings name, by setting, each with its SHA-256 and, of data, its number of rows.

    Args:
        known: of an earlier start: rows of a file with the same content are not counted again.

    Raises:
        NotFoundError, InvalidInputError, CorruptDataError, MissingDependencyError: a file of data that cannot be read.
    """
    rows = {file["sha256"]: file[_ROWS_KEY] for files in known.values() for file in files if _ROWS_KEY in file}
    found = {}
    for setting, path in _named(recipe):
        is_data = setting.endswith(".source")
        paths = find_files(str(path)) if is_data else [Path(path)]
        found[setting] = [_file(each, rows if is_data else None) for each in paths if each.is_file()]
    return found


def _named(recipe: Recipe) -> Iterator[tuple[str, str | Path]]:
    for part, sources in (("train", recipe.data.train), ("eval", recipe.data.eval)):
        for number, source in enumerate(sources):
            if is_file(source.source):
                yield f"data.{part}.{number}.source", source.source
            if isinstance(source.chat_template, Path):
                yield f"data.{part}.{number}.chat_template", source.chat_template
    for name, verifier in recipe.reward.verifiers.items():
        if isinstance(file := verifier.get("file"), str):
            yield f"reward.verifiers.{name}.file", file


def _file(path: Path, rows: Mapping[str, int] | None) -> dict[str, Any]:
    about: dict[str, Any] = {"path": str(path.absolute()), "bytes": path.stat().st_size, "sha256": sha256(path)}
    if rows is not None:
        digest = about["sha256"]
        about[_ROWS_KEY] = rows[digest] if digest in rows else sum(1 for _ in read_file(path))
    return about
