"""What a run leaves for its report: one JSON object a line, in the run's folder."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

LEARNER = "learner.jsonl"
EVALUATIONS = "evaluations.jsonl"


def append(path: Path, record: Mapping[str, Any]) -> None:
    """Adds a line, with the time (UTC, ISO 8601) in front."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record})
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """All complete lines so far; none where the file does not exist yet."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
