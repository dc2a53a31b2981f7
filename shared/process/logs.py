"""Logs: one JSON object a line in a file, short lines on the terminal."""

import json
import logging
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}
_TAIL_BYTES = 1 << 16  # more than the longest last line worth showing


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
        return ": ".join(text.splitlines())


def path(folder: Path, service: str) -> Path:
    """The file of a service's log."""
    return folder / f"{service}.jsonl"


def last_line(file: Path) -> str:
    """What a log says last: of a JSON line its message and exception, else the line itself; "" where there is none."""
    try:
        with file.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - _TAIL_BYTES))
            line = stream.read().decode(errors="replace").rstrip().rpartition("\n")[2]
    except OSError:
        return ""
    try:
        record = json.loads(line)
        return ": ".join([record["message"], *record.get("traceback", "").splitlines()[-1:]])
    except (ValueError, LookupError, TypeError):
        return line


def configure(service: str, folder: Path | None, terminal_level: str = "INFO") -> None:
    """Sends everything from INFO up to `folder`/SERVICE.jsonl and `terminal_level` up to stderr."""
    logging.raiseExceptions = False  # a full disk would print a traceback for each line that it refuses
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(terminal_level)
    terminal.setFormatter(TerminalFormatter(service))
    root.addHandler(terminal)
    root.setLevel(logging.INFO)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = logging.FileHandler(path(folder, service), encoding="utf-8")
        except OSError as error:  # as where the run's folder is a volume that this service only reads
            logging.getLogger(__name__).warning("no log file, all is said here: %s", error)
            return
        file.setFormatter(JsonFormatter(service))
        root.addHandler(file)
