"""The content of what settings name: the model, data, and code of verifiers and environments."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from services.curriculum.data.files import find_files, read_file
from services.curriculum.data.settings import DataSettings
from services.curriculum.settings import Settings as CurriculumTables
from services.environments.settings import Settings as EnvironmentsTables
from services.learner.checkpointing.identity import fingerprint
from services.reward.settings import Settings as RewardTables
from shared.files import sha256
from shared.settings import BaseSettings, RunSettings
from shared.sources import is_file

_ROWS_KEY = "rows"


def model(run: RunSettings) -> dict[str, Any]:
    """The folder of the model and its fingerprint; of a name on the Hugging Face Hub, its commit as well."""
    folder = run.require_model()
    about = {"folder": str(folder.absolute()), "fingerprint": fingerprint(folder)}
    return about if isinstance(run.model, Path) else {"name": run.model, "revision": folder.name, **about}


def contents(
    settings: BaseSettings, known: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """The files that these settings name, by setting, each with its SHA-256 and, of data, its number of rows.

    Args:
        known: of an earlier start: rows of a file with the same content are not counted again.

    Raises:
        NotFoundError, InvalidInputError, CorruptDataError, MissingDependencyError: a file of data that cannot be read.
    """
    rows = {file["sha256"]: file[_ROWS_KEY] for files in known.values() for file in files if _ROWS_KEY in file}
    found = {}
    for setting, path in _named(settings):
        is_data = setting.endswith(".source")
        paths = find_files(str(path)) if is_data else [Path(path)]
        found[setting] = [_file(each, rows if is_data else None) for each in paths if each.is_file()]
    return found


def _named(settings: BaseSettings) -> Iterator[tuple[str, str | Path]]:
    data = settings.data if isinstance(settings, CurriculumTables) else DataSettings()
    for part, sources in (("train", data.train), ("eval", data.eval)):
        for number, source in enumerate(sources):
            if is_file(source.source):
                yield f"data.{part}.{number}.source", source.source
            if isinstance(source.chat_template, Path):
                yield f"data.{part}.{number}.chat_template", source.chat_template
    verifiers = settings.reward.verifiers if isinstance(settings, RewardTables) else {}
    environments = settings.environments.named if isinstance(settings, EnvironmentsTables) else {}
    for where, tables in (("reward.verifiers", verifiers), ("environments.named", environments)):
        for name, table in tables.items():
            if isinstance(file := table.get("file"), str):
                yield f"{where}.{name}.file", file


def _file(path: Path, rows: Mapping[str, int] | None) -> dict[str, Any]:
    about: dict[str, Any] = {"path": str(path.absolute()), "bytes": path.stat().st_size, "sha256": sha256(path)}
    if rows is not None:
        digest = about["sha256"]
        about[_ROWS_KEY] = rows[digest] if digest in rows else sum(1 for _ in read_file(path))
    return about
