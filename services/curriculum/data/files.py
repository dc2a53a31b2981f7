"""Reads the rows of JSON Lines, JSON, CSV, TSV and Parquet files, also those packed with gzip."""

import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path
from typing import IO, Any

from services.curriculum.data.json_rows import json_lines, json_list
from services.curriculum.data.rows import BadRow, Row, in_words
from shared import encodings
from shared.errors import CorruptDataError, InvalidInputError, MissingDependencyError, NotFoundError
from shared.sources import ENDINGS, is_glob

_GZIP = b"\x1f\x8b"
_LFS = b"version https://git-lfs.github.com/spec/"
_BATCH = 256  # rows of a Parquet file that are read at once


def find_files(source: str) -> list[Path]:
    """The files of a source, sorted by name.

    Raises:
        NotFoundError: there is none.
        InvalidInputError: a folder, or a file of a kind that is not read.
    """
    path = Path(source)
    if path.is_dir():
        inside = sorted({f"*{file.suffix}" for file in path.iterdir() if file.suffix in ENDINGS})
        hint = f"{source.rstrip('/')}/{inside[0]}" if inside else "a file in it, or a glob such as folder/*.jsonl"
        raise InvalidInputError(f"source {source} is a folder; set source to {hint}")
    matching = glob(source, recursive=True) if is_glob(source) else []  # noqa: PTH207  # Path.glob takes no whole path
    files = [path] if path.is_file() else [file for file in map(Path, sorted(matching)) if file.is_file()]
    if not files:
        what = "no file matches it" if is_glob(source) else "no such file"
        raise NotFoundError(f"source {source}: {what}; a path in a recipe is relative to the recipe's folder")
    for file in files:
        if not file.name.removesuffix(".gz").endswith(ENDINGS):
            raise InvalidInputError(
                f"source {file} is of no known kind; expected {', '.join(ENDINGS)}, or these with .gz"
            )
    return files


def read_file(path: Path) -> Iterator[Row | BadRow]:
    """The rows of one file, in order. A row that is malformed comes as a BadRow.

    Raises:
        InvalidInputError: the file has no rows, or is no table of rows.
        CorruptDataError: it is cut off, or is not what its name says.
        NotFoundError: it may not be read.
        MissingDependencyError: Parquet without pyarrow.
    """
    found, last = False, 0
    try:
        with _open(path) as file:
            for row in _reader(path)(str(path), file):
                found, last = True, row.number
                yield row
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise CorruptDataError(
            f"{path} is no whole gzip file, after row {last}: {error}; copy it again, or pack it again with gzip"
        ) from None
    except UnicodeDecodeError as error:
        raise CorruptDataError(
            f"{path} is not UTF-8 after row {last}: {error.reason}; {encodings.fix(path, error)}"
        ) from None
    except OSError as error:
        raise NotFoundError(
            f"{path} cannot be read: {error.strerror or error}; check its path and permissions"
        ) from None
    if not found:
        raise InvalidInputError(f"{path} holds no rows; take it out of the source, or write it again")


def _reader(path: Path) -> Any:
    name = path.name.removesuffix(".gz")
    if name.endswith((".jsonl", ".ndjson")):
        return json_lines
    if name.endswith(".json"):
        return json_list
    return _parquet if name.endswith(".parquet") else _tsv if name.endswith(".tsv") else _csv


def _open(path: Path) -> IO[bytes]:
    """The file unpacked, whatever its name says of gzip."""
    file = path.open("rb")
    start = file.read(len(_LFS))
    file.seek(0)
    _refuse_wide(path, start)
    if start == _LFS:
        file.close()
        raise CorruptDataError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")
    packed = start.startswith(_GZIP)
    if path.suffix == ".gz" and not packed and start:
        file.close()
        raise CorruptDataError(f"{path} is no gzip file; name it {path.name.removesuffix('.gz')}, or copy it again")
    if not packed:
        return file
    file.close()
    unpacked: IO[bytes] = gzip.open(path)  # type: ignore[assignment]  # noqa: SIM115  # the caller closes it
    if not path.name.endswith(".parquet.gz"):
        _refuse_wide(path, unpacked.read(len(_LFS)))
        unpacked.seek(0)
        return unpacked
    with unpacked:  # Parquet is read from its end
        return io.BytesIO(unpacked.read())


def _refuse_wide(path: Path, start: bytes) -> None:
    """Raises CorruptDataError for text in characters of two or four bytes: no line of it could be read."""
    if not path.name.endswith((".parquet", ".parquet.gz")) and (wide := encodings.wide(start)):
        raise CorruptDataError(f"{path} is {wide}, not UTF-8; {encodings.conversion(path, wide)}")


def _csv(name: str, file: IO[bytes], delimiter: str = ",") -> Iterator[Row | BadRow]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # a column of tests may be long
    lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    begun = 1
    try:
        for cells in lines:
            number, begun = begun, lines.line_num + 1
            if not cells:
                continue
            if header is None:
                header = cells
                if len(cells) == 1 and (sign := next((sign for sign in ";|\t" if sign in cells[0]), None)):
                    raise InvalidInputError(
                        f"{name} row 1 is one column, {cells[0]!r}; separate columns by commas rather than {sign!r}, "
                        "or by tabs in a file that ends in .tsv"
                    )
                _refuse_twice(f"{name} row 1 names", cells)
            elif len(cells) != len(header):
                reason = f"it has {len(cells)} cells, the header {len(header)}; quote cells that hold the separator"
                yield BadRow(name, number, "", in_words(delimiter.join(cells)), reason)
            else:
                yield Row(name, number, dict(zip(header, cells, strict=True)))
    except csv.Error as error:
        raise CorruptDataError(f"{name} row {begun} is not CSV: {error}; mend the quotes") from None


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InvalidInputError(f"{what} the column {twice!r} twice; give each its own name")


def _tsv(name: str, file: IO[bytes]) -> Iterator[Row | BadRow]:
    return _csv(name, file, "\t")


def _parquet(name: str, file: IO[bytes]) -> Iterator[Row | BadRow]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise MissingDependencyError(f"{name} needs the package pyarrow: pip install 'routershift[data]'") from None
    try:
        table = pyarrow.parquet.ParquetFile(file)
        _refuse_twice(f"{name} names", table.schema_arrow.names)
        number = 0
        for batch in table.iter_batches(batch_size=_BATCH):
            for columns in batch.to_pylist():
                number += 1
                yield Row(name, number, columns)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise CorruptDataError(f"{name} is no whole Parquet file: {reason}; copy it again") from None
