"""What a run leaves for its report: one JSON object a line, in the run's folder."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from io import SEEK_END, FileIO
from pathlib import Path
from typing import Any

from shared.files import write_whole

LEARNER = "learner.jsonl"
EVALUATIONS = "evaluations.jsonl"
SUMMARY = "summary.json"  # of `run`, when it has come to its end
ENDPOINTS = "endpoints.json"  # where its services answer
PROVENANCE = "provenance.json"  # what the run was made of
CHECKPOINTS = "checkpoints"  # folder of what the learner goes on from
WEIGHTS = "weights"  # folder of published versions
_LONGEST_BYTES = 1 << 20  # of a record
_RECENT_BYTES = 1 << 19  # of a file, in which its last records are looked for


def strict(value: Any) -> Any:
    """The same value with null for numbers that JSON does not have: NaN and the infinities, at any depth."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: strict(inner) for key, inner in value.items()}
    return [strict(inner) for inner in value] if isinstance(value, list | tuple) else value


def dumps(value: Any, indent: int | None = None) -> str:
    """Strict JSON (RFC 8259), which every reader takes; see `strict` for what it has no numbers for."""
    return json.dumps(strict(value), indent=indent, allow_nan=False)


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a line, with the time (UTC, ISO 8601) in front; all of it, or nothing where it raises OSError."""
    line = dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record})
    append_lines(path, f"{line}\n".encode())


def append_lines(path: Path, lines: bytes) -> None:
    """Adds lines, the last of which ends too; all of them, or nothing where it raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without a buffer, which would try to write what is left of the line before it lets the file be cut.
    with path.open("ab+", buffering=0) as file:
        whole = _cut_half_a_line(file)
        write_whole(file, lines, whole)


def _cut_half_a_line(file: FileIO) -> int:
    """Where the last whole line ends. What follows it was left by a process that was killed while it wrote."""
    size = file.seek(0, SEEK_END)
    file.seek(max(0, size - _LONGEST_BYTES))
    end = file.read()
    whole = size - len(end) + end.rfind(b"\n") + 1
    if whole < size:
        file.truncate(whole)
    return whole


class Tail:
    """Follows a file of records that grows: every read gives what came since the one before."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """The complete lines that are new; none where the file does not exist yet."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        self._offset += len(complete)
        return [json.loads(line) for line in complete.splitlines()]


def steps(path: Path) -> list[dict[str, Any]]:
    """The records of the learner, the last one of each step: steps since a checkpoint are done again after a crash."""
    return list({record["step"]: record for record in read(path)}.values())


def recent(path: Path, count: int) -> list[dict[str, Any]]:
    """The last complete lines, oldest first, as far as the end of the file holds them; costs the same in any run."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        cut = max(0, file.seek(0, SEEK_END) - _RECENT_BYTES)
        file.seek(cut)
        data = file.read()
    complete = data[: data.rfind(b"\n") + 1].splitlines()
    return [json.loads(line) for line in complete[1 if cut else 0 :][-count:]]


def read(path: Path) -> list[dict[str, Any]]:
    """All complete lines so far; none where the file does not exist yet."""
    return Tail(path).read()
