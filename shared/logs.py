"""Logs: one JSON object a line in a file, short lines on the terminal."""

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime"}


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


def configure(service: str, folder: Path | None, terminal_level: str = "INFO") -> None:
    """Sends everything from INFO up to `folder`/SERVICE.jsonl and `terminal_level` up to stderr."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(terminal_level)
    terminal.setFormatter(logging.Formatter(f"%(asctime)s {service:<10} %(message)s", datefmt="%H:%M:%S"))
    root.addHandler(terminal)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        file = logging.FileHandler(folder / f"{service}.jsonl", encoding="utf-8")
        file.setFormatter(JsonFormatter(service))
        root.addHandler(file)
    root.setLevel(logging.INFO)
