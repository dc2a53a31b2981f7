"""The files of records: whole lines only, whatever happens to their writers."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np

from shared.tracking import records

# Writes three records, the second where the file may not grow by a whole line.
WRITER = """
import resource, signal, sys
from pathlib import Path
from shared.tracking import records
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
path = Path(sys.argv[1])
records.append(path, {"step": 1})
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
try:
    records.append(path, {"step": 2})
except OSError as error:
    print(type(error).__name__)
print(len(records.read(path)), path.read_bytes().count(b"{"))
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
records.append(path, {"step": 3})
"""


def test_a_tail_gives_each_complete_line_once(tmp_path: Path) -> None:
    path = tmp_path / "a" / "steps.jsonl"
    tail = records.Tail(path)
    assert tail.read() == []
    records.append(path, {"step": 1})
    records.append(path, {"step": 2, "text": "é\u2028ü"})
    assert [record["step"] for record in tail.read()] == [1, 2]
    assert tail.read() == []
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 3')
    assert tail.read() == []
    with path.open("a", encoding="utf-8") as file:
        file.write("}\n")
    assert tail.read() == [{"step": 3}]
    assert [record["step"] for record in records.read(path)] == [1, 2, 3]


def test_a_line_that_finds_no_room_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    writer = subprocess.run([sys.executable, "-c", WRITER, path], capture_output=True, text=True, check=True)
    assert writer.stdout.split() == ["OSError", "1", "1"]
    assert [record["step"] for record in records.read(path)] == [1, 3]


def test_half_a_line_of_a_killed_writer_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_bytes(b'{"step')
    records.append(path, {"step": 1})
    with path.open("ab") as file:
        file.write(b'{"step": 2, "half')
    records.append(path, {"step": 3})
    assert [record["step"] for record in records.read(path)] == [1, 3]


def test_numbers_that_json_does_not_have_become_null_at_any_depth(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    path = tmp_path / "records.jsonl"
    value = {
        "kl": math.inf,
        "by": {"layer": [-math.inf, 1.5, (math.nan,)]},
        "loss": np.float64("nan"),
        "n": 3,
        "x": True,
    }
    records.append(path, value)
    (line,) = path.read_text(encoding="utf-8").splitlines()
    found = json.loads(line, parse_constant=refuse)
    found.pop("time")
    assert found == {"kl": None, "by": {"layer": [None, 1.5, [None]]}, "loss": None, "n": 3, "x": True}


def test_recent_lines_are_whole_and_the_last(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    assert records.recent(file, 3) == []
    for step in range(10):
        records.append(file, {"step": step, "padding": "x" * 200_000})
    with file.open("a") as half:
        half.write('{"step": 10')
    assert [record["step"] for record in records.recent(file, 2)] == [8, 9]
    assert [record["step"] for record in records.recent(file, 100)] == [8, 9], (
        "as far as the end of the file holds them"
    )
