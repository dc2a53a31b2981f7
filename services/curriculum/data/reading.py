"""Reads the rows of a source, whatever kind it is of."""

from collections.abc import Iterator
from pathlib import Path

from services.curriculum.data.files import find_files, read_file
from services.curriculum.data.hub import read_data_set
from services.curriculum.data.procedural import read_procedural
from services.curriculum.data.rows import BadRow, Row
from services.curriculum.data.settings import EvalSettings, SourceSettings
from shared.sources import PROCEDURAL, is_file


def read_rows(source: SourceSettings) -> Iterator[Row | BadRow]:
    """The rows of a source, as they stand there. Raises what the readers of its kind raise."""
    if source.source.startswith(PROCEDURAL):
        yield from read_procedural(source)
        return
    if not is_file(source.source) and not Path(source.source).exists():
        yield from read_data_set(source, "test" if isinstance(source, EvalSettings) else "train")
        return
    for path in find_files(source.source):
        yield from read_file(path)
