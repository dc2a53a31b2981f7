"""The table of kept samples: what it takes, how it sorts, and what it reads for that."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from services.cli.pages.sample_table import MOST_ROWS, Query, SampleTable
from shared.errors import InvalidInputError, NotFoundError
from shared.tracking import samples as kept
from shared.tracking.samples import SampleWriter
from tests.support.run_records import sample, write_samples

_opened: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


sys.addaudithook(_note)  # stays for the life of the process; notes only while somebody asks


@contextmanager
def opened_files(folder: Path) -> Iterator[list[str]]:
    """The names of the files below a folder that are opened in the block."""
    global _opened
    _opened = []
    names: list[str] = []
    try:
        yield names
    finally:
        names += [Path(path).name for path in _opened if path.startswith(str(folder))]
        _opened = None


def test_an_index_is_read_once_and_a_sample_when_it_is_asked_for(tmp_path: Path) -> None:
    write_samples(tmp_path, range(1, 41), each=25)
    table = SampleTable(tmp_path)
    with opened_files(tmp_path / kept.FOLDER) as first:
        page = table.page(Query())
    assert (page.total, len(page.rows)) == (1000, 50)
    assert sorted(first) == [f"step-{step:08d}.jsonl" for step in range(1, 41)]
    with opened_files(tmp_path / kept.FOLDER) as again:
        table.page(Query(offset=500, text="row 7", sort="gamma_min"))
        table.index_bytes()
    assert again == []
    SampleWriter(tmp_path, 1 << 30).add([sample(41, 0)])
    with opened_files(tmp_path / kept.FOLDER) as grown:
        assert table.page(Query()).rows[0].step == 41
    assert grown == ["step-00000041.jsonl"]
    with opened_files(tmp_path / kept.FOLDER) as one:
        assert table.sample(41, page.rows[0].trajectory.replace("0040", "0041"))["step"] == 41
    assert sorted(one) == ["step-00000041.bin", "step-00000041.jsonl"]


def test_steps_that_made_room_leave_the_table(tmp_path: Path) -> None:
    write_samples(tmp_path, (1, 2), each=3)
    table = SampleTable(tmp_path)
    assert table.page(Query()).kept == 6
    for path in (tmp_path / kept.FOLDER).glob("step-00000001.*"):
        path.unlink()
    assert {row.step for row in table.page(Query()).rows} == {2}
    with pytest.raises(NotFoundError):
        table.sample(1, "00010000/0/0")


def test_a_run_without_samples_has_an_empty_table(tmp_path: Path) -> None:
    table = SampleTable(tmp_path)
    page = table.page(Query())
    assert (page.total, page.kept, list(page.rows), list(page.outcomes)) == (0, 0, [], [])
    assert table.some(5, 1000) == []


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"outcome": "stale"}, ["c"]),
        ({"correct": "yes"}, ["b"]),
        ({"correct": "no"}, ["a"]),
        ({"text": "ÄPFEL"}, ["b"]),
        ({"text": "ROW C"}, ["c"]),
        ({"first_step": "2"}, ["b", "c"]),
        ({"last_step": "2"}, ["a", "b"]),
        ({"first_step": "2", "last_step": "2"}, ["b"]),
        ({"text": "nothing like it"}, []),
        ({"outcome": "", "correct": "", "text": "", "first_step": ""}, ["a", "b", "c"]),
    ],
)
def test_a_query_takes(tmp_path: Path, parameters: dict[str, str], expected: list[str]) -> None:
    writer = SampleWriter(tmp_path, 1 << 30)
    writer.add([sample(1, 0, trajectory="a/0/0", parts={"correct": 0.0})])
    writer.add([sample(2, 0, trajectory="b/0/0", parts={"correct": 1.0}, response="drei Äpfel")])
    writer.add([sample(3, 0, trajectory="c/0/0", parts={}, outcome="stale", problem="row c")])
    page = SampleTable(tmp_path).page(Query.of({"sort": "step", "descending": "no", **parameters}))
    assert [row.prompt_id for row in page.rows] == expected
    assert (page.kept, list(page.outcomes)) == (3, ["stale", "trained"])


def test_a_sample_without_the_value_is_last_either_way(tmp_path: Path) -> None:
    advantages = {"a": 0.5, "b": None, "c": -0.5}
    SampleWriter(tmp_path, 1 << 30).add(
        [sample(1, i, trajectory=f"{name}/0/0", advantage=value) for i, (name, value) in enumerate(advantages.items())]
    )
    table = SampleTable(tmp_path)
    for descending, expected in ((True, "acb"), (False, "cab")):
        rows = table.page(Query(sort="advantage", descending=descending)).rows
        assert "".join(row.prompt_id for row in rows) == expected


def test_pages_do_not_overlap(tmp_path: Path) -> None:
    write_samples(tmp_path, (1, 2, 3), each=7)
    table = SampleTable(tmp_path)
    pages = [table.page(Query(offset=offset, limit=5, sort="reward")).rows for offset in range(0, 25, 5)]
    assert [len(rows) for rows in pages] == [5, 5, 5, 5, 1]
    assert len({row.trajectory for rows in pages for row in rows}) == 21


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"limit": "0"}, "limit is 0"),
        ({"limit": str(MOST_ROWS + 1)}, "limit is 201"),
        ({"limit": "many"}, "limit is 'many'"),
        ({"offset": "-1"}, "offset is '-1'"),
        ({"offset": "٣"}, "offset is"),
        ({"offset": "9" * 400}, "offset is"),
        ({"first_step": "1.5"}, "first_step is '1.5'"),
        ({"sort": "__class__"}, "sort is '__class__'"),
        ({"descending": "1"}, "descending is '1'; give one of yes, no"),
        ({"path": "/etc"}, "path is no parameter of samples"),
    ],
)
def test_a_query_that_does_not_fit_is_named(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Query.of(parameters)


def test_some_are_of_every_kind_and_no_more_than_fit(tmp_path: Path) -> None:
    write_samples(tmp_path, range(1, 6), each=8)
    writer = SampleWriter(tmp_path, 1 << 30)
    writer.add([sample(6, 0, trajectory="d/0/0", outcome="stale"), sample(6, 1, trajectory="e/0/0", outcome="late")])
    table = SampleTable(tmp_path)
    found = table.some(6, 1_000_000)
    assert len(found) == 6
    assert {each["summary"]["outcome"] for each in found} == {"trained", "stale", "late"}
    assert all(each["sample"]["trajectory"] == each["summary"]["trajectory"] for each in found)
    least = min(row.gamma_min for row in table.summaries() if row.gamma_min is not None)
    assert least in [each["summary"]["gamma_min"] for each in found]
    numbers = 12 * (8 + 3)
    assert len(table.some(6, 2 * numbers)) == 2
    assert table.some(6, numbers - 1) == []
