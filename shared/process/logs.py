"""Logs: one JSON object a line in a file, short lines on the terminal.

Where there can be no file, as on a volume that a service only reads, the JSON goes to stderr in place of the short
lines.
"""

import json
import logging
import os
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}
_TAIL_BYTES = 1 << 16  # more than the longest last line worth showing
_RECENT_BYTES = 1 << 18  # of a log, in which its last problems are looked for
_PROBLEMS = ("warning", "error", "critical")


@dataclass(frozen=True, slots=True)
class Problem:
    """A line of a log that is a warning or worse."""

    time: datetime  # UTC
    service: str
    level: str  # warning, error or critical
    message: str  # on one line, with the last line of a traceback


class JsonFormatter(logging.Formatter):
    """Time (UTC, ISO 8601), level, service, logger, message, and whatever came in `extra`."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class TerminalHandler(logging.StreamHandler[TextIO]):
    """Writes to what `sys.stderr` is at that moment, which a progress line replaces while it stands there."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]  # the base class has an attribute
        return sys.stderr


class TerminalFormatter(logging.Formatter):
    """One short line, also for an exception: its traceback is in the file."""

    def __init__(self, service: str) -> None:
        super().__init__(f"%(asctime)s {service:<10} %(message)s", datefmt="%H:%M:%S")

    def formatException(self, ei: Any) -> str:  # noqa: N802  # the base class names it
        kind, error, _ = ei
        return f"{kind.__name__}: {error}"

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # else the traceback that another handler's formatter left here would be taken
        text = super().format(record)
        record.exc_text = None
        return "".join(_visible(character) for character in ": ".join(text.splitlines()))


class PrivateFileHandler(logging.FileHandler):
    """A file that is made for its owner alone: errors may quote what models and callers wrote."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, opener=_private)


def _private(file: str, flags: int) -> int:
    return os.open(file, flags, 0o600)


def _visible(character: str) -> str:
    """A control character as its escape: what a caller sent must not move the cursor of whoever reads the log."""
    return character if character.isprintable() else ascii(character)[1:-1]


def path(folder: Path, service: str) -> Path:
    """The file of a service's log."""
    return folder / f"{service}.jsonl"


def last_line(file: Path) -> str:
    """What a log says last: of a JSON line its message and exception, else the line itself; "" where there is none."""
    line = _tail(file, _TAIL_BYTES).rstrip().rpartition("\n")[2]
    try:
        return _message(json.loads(line))
    except (ValueError, LookupError, TypeError):
        return line


def problems(folder: Path, count: int) -> list[Problem]:
    """The last warnings and errors of all logs of a folder, the newest last, as far as the ends of the files hold them.

    What is no line of a log, as the first one where a file is cut, is passed over.
    """
    found = []
    for file in sorted(folder.glob("*.jsonl")):
        for line in _tail(file, _RECENT_BYTES).splitlines():
            try:
                record = json.loads(line)
                if record["level"] in _PROBLEMS:
                    message = " ".join(_message(record).split())
                    when = datetime.fromisoformat(record["time"])
                    found.append(Problem(when, record["service"], record["level"], message))
            except (ValueError, LookupError, TypeError):
                continue
    return sorted(found, key=lambda problem: problem.time)[-count:]


def _tail(file: Path, size: int) -> str:
    """The last bytes of a file as text; "" where it cannot be read."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - size))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def _message(record: dict[str, Any]) -> str:
    return ": ".join([record["message"], *record.get("traceback", "").splitlines()[-1:]])


def configure(service: str, folder: Path | None, terminal_level: str = "INFO") -> None:
    """Sends everything from INFO up to `folder`/SERVICE.jsonl and `terminal_level` up to stderr.

    Where that file cannot be made, stderr gets the JSON that it would have held.
    """
    logging.raiseExceptions = False  # a full disk would print a traceback for each line that it refuses
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    terminal = TerminalHandler()
    terminal.setLevel(terminal_level)
    terminal.setFormatter(TerminalFormatter(service))
    root.addHandler(terminal)
    root.setLevel(logging.INFO)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = PrivateFileHandler(path(folder, service), encoding="utf-8")
        except OSError as error:  # as where the run's folder is a volume that this service only reads
            terminal.setFormatter(JsonFormatter(service))  # whose tracebacks would be nowhere else
            logging.getLogger(__name__).warning("no log file, all is said here: %s", error)
            return
        file.setFormatter(JsonFormatter(service))
        root.addHandler(file)
