"""Rows and files that cannot be used: one line names file, row, column, value and fix."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.errors import CorruptDataError, InvalidInputError, RouterShiftError
from tests.support.data import loaded, save_chat_model, source, sums, write_jsonl


def nested(depth: int) -> str:
    """A row whose answer is a list in lists."""
    return '{"question": "q", "answer": ' + "[" * depth + "1" + "]" * depth + "}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"), positions=200)


@pytest.mark.parametrize(
    ("rows", "keys", "said"),
    [
        (['{"question": "q"'], {}, r"row 4, is .*: not JSON: .*; mend it"),
        (["[1]"], {}, r"row 4, is \[1\]: expected an object"),
        ([{"question": "q"}], {}, "row 4, column answer: no such column: the row has question; name one of these"),
        ([{"question": "q", "answer": None}], {}, "row 4, column answer, is None: the row has no reference; fill it"),
        ([{"question": "q", "answer": ""}], {}, "row 4, column answer, is '': the row has no reference"),
        ([{"question": "q", "answer": "  "}], {}, "row 4, column answer, is '  ': the row has no reference"),
        ([{"question": " ", "answer": "1"}], {}, "row 4, column question: the row has no prompt"),
        ([{"question": None, "answer": "1"}], {}, "row 4, column question: the row has no prompt"),
        ([{"question": "q", "answer": 7}], {}, "row 4, column answer, is 7: it is a number, and text in most rows"),
        ([{"question": "q", "answer": [1]}], {}, r"row 4, column answer, is \[1\]: it is a list, and text in most"),
        ([{"question": "q", "answer": True}], {}, "row 4, column answer, is True: it is true or false"),
        (['{"question": "q", "answer": NaN}'], {}, "row 4, is .*: not JSON: NaN is no JSON"),
        (['{"question": "\\ud83d", "answer": "1"}'], {}, "row 4, column question, is .*: character .* is half of one"),
        (['{"question": "q", "answer": "\\ud83d"}'], {}, "row 4, column answer, is .*: character 0 is half of one"),
        (
            [{"question": "q", "answer": 10**20}],
            {},
            r"row 4, column answer, .* would lose digits .* \\| str",
        ),
        (
            [nested(40)],
            {},
            "column answer, .*: a value has more than 24",
        ),
        ([nested(9000)], {}, "row 4, is .*: not JSON: .*recursion"),
        ([{"question": "q" * 300, "answer": "1"}], {}, "row 4, column prompt, is .*: the prompt has .* room for 176"),
        (
            [{"question": "q", "answer": "x"}],
            {"columns": {"prompt": "question", "answer": "{{ answer | int(default=none) + 1 }}"}},
            "row 4, column answer, is 'x': data.train.0.columns.answer cannot use it: unsupported operand",
        ),
        (
            [{"question": "q", "answer": "x"}],
            {"columns": {"prompt": "question", "answer": "{{ anwser }}"}},
            "row 1, column data.train.0.columns.answer: no such column: anwser; name one of question, answer",
        ),
        (
            [{"question": "q", "answer": "x"}],
            {"columns": {"prompt": "qestion", "answer": "answer"}},
            "row 1, column qestion: no such column: the row has question, answer",
        ),
        ([{"question": "q", "answer": "x"}], {"filter": "nope > 1"}, "no such column|nope.*is undefined"),
        (
            [{"question": "q", "answer": "1"}],
            {"columns": {"prompt": "question", "answer": "answer", "id": "answer"}},
            r"row 4, column id, is '1': .*a.jsonl:5 has the same id|row 5, column id",
        ),
        ([{"question": "q", "answer": "1"}], {"tools": "question"}, "column tools: is .*; expected a list of tables"),
    ],
)
def test_a_row_that_cannot_be_used_is_named_with_its_fix(
    model: Path, tmp_path: Path, rows: list[Any], keys: dict[str, Any], said: str
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*sums(3, 1), *rows, {"question": "last", "answer": "1"}])
    made = loaded(model, [source(path, **keys)], [source(write_jsonl(tmp_path / "e.jsonl", sums(1, 90)))])
    with pytest.raises(InvalidInputError, match=said) as caught:
        raise made.errors[0]
    assert str(caught.value).startswith("data.train.0: ")
    assert "more than data.max_bad_share = 0.01" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert made.report.train[0].rows == 5


def test_prompts_that_all_read_the_same_are_refused_where_their_references_differ(model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sums(10))
    made = loaded(model, [source(path, prompt="Add them.")])
    (error,) = made.errors
    assert str(error).startswith("data.train.0: all 10 prompts read the same, '")
    assert "Add them." in str(error)
    assert "name the columns of the problem in `prompt`" in str(error)
    same = write_jsonl(tmp_path / "b.jsonl", [{"question": "q", "answer": "1"}] * 10)
    assert not any("read the same" in str(error) for error in loaded(model, [source(same)]).errors)


def test_few_bad_rows_are_counted_and_the_rest_is_used(model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*sums(10), {"question": "q"}, "{"])
    made = loaded(model, [source(path)], max_bad_share=0.2)
    assert made.errors == []
    (report,) = made.report.train
    assert (report.rows, report.used + report.held_out, len(report.bad)) == (12, 10, 2)
    assert [row.number for row in report.bad] == [11, 12]


@pytest.mark.parametrize(
    ("name", "contents", "error", "said"),
    [
        ("a.jsonl", b"", InvalidInputError, "a.jsonl holds no rows"),
        ("a.jsonl", b"\n \n", InvalidInputError, "a.jsonl holds no rows"),
        ("a.json", b"", InvalidInputError, "a.json holds no rows"),
        ("a.json", b"[]", InvalidInputError, "a.json holds no rows"),
        ("a.csv", b"question,answer\n", InvalidInputError, "a.csv holds no rows"),
        ("a.json", b"[1, 2", CorruptDataError, "a.json is not JSON: .*expected a list of objects"),
        ("a.json", b'{\n"a": 1, "b": 2}', InvalidInputError, "a.json holds one dict; expected a list of objects"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"question": "q", "answer": "1"}\n' * 9, mtime=0)[:-9],
            CorruptDataError,
            "whole gzip",
        ),
        ("a.jsonl.gz", b'{"question": "q", "answer": "1"}\n', CorruptDataError, "is no gzip file; name it a.jsonl"),
        ("a.csv", b'question,answer\n"a,b\n', CorruptDataError, "a.csv row 2 is not CSV: .*; mend the quotes"),
        ("a.csv", b"question;answer\n1;2\n", InvalidInputError, "is one column, .*; separate columns by commas"),
        ("a.csv", b"question,question\n1,2\n", InvalidInputError, "names the column 'question' twice"),
        ("a.csv", b"question,answer\n\xff\xff,1\n", CorruptDataError, "is not UTF-8 after row .*; convert it"),
        ("a.parquet", b"PAR1 and then nothing", CorruptDataError, "a.parquet is no whole Parquet file"),
        ("a.parquet", b"", CorruptDataError, "a.parquet is no whole Parquet file"),
        (
            "a.jsonl",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n",
            CorruptDataError,
            "is a Git LFS pointer, not the file itself; run `git lfs pull`",
        ),
        ("a.txt", b"q", InvalidInputError, "a.txt is of no known kind; expected .jsonl"),
    ],
)
def test_a_file_that_is_none_is_named_with_its_fix(
    model: Path, tmp_path: Path, name: str, contents: bytes, error: type[RouterShiftError], said: str
) -> None:
    (tmp_path / name).write_bytes(contents)
    made = loaded(model, [source(tmp_path / name)])
    with pytest.raises(error, match=rf"data\.train\.0: .*{said}") as caught:
        raise made.errors[0]
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there_and_folders(model: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    write_jsonl(tmp_path / "folder" / "a.jsonl", sums(1))
    sources = [source(tmp_path / name) for name in ("none.jsonl", "no*.jsonl", "folder")]
    said = [str(error) for error in loaded(model, sources).errors]
    assert said[0].startswith(
        f"data.train.0: source {tmp_path}/none.jsonl: no such file; a path in a recipe is relative"
    )
    assert said[1].startswith(f"data.train.1: source {tmp_path}/no*.jsonl: no file matches it")
    assert said[2] == f"data.train.2: source {tmp_path}/folder is a folder; set source to {tmp_path}/folder/*.jsonl"


def test_a_line_that_is_not_utf_8_is_a_bad_row(model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sums(3))
    path.write_bytes(path.read_bytes() + b'{"question": "\xff", "answer": "1"}\n')
    (bad,) = loaded(model, [source(path)]).report.train[0].bad
    assert (bad.number, bad.reason.partition(":")[0]) == (4, "not JSON")


def test_cells_that_do_not_match_the_header_are_bad_rows(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('question,answer\n"1,\n1",2\n3\n4,5,6\n7,8\n')
    made = loaded(model, [source(tmp_path / "a.csv")], max_bad_share=1)
    assert [(row.number, row.reason.partition(";")[0]) for row in made.report.train[0].bad] == [
        (4, "it has 1 cells, the header 2"),
        (5, "it has 3 cells, the header 2"),
    ]


def test_a_key_that_stands_twice_is_named_with_its_row(model: Path, tmp_path: Path) -> None:
    """Python's parser keeps the last value without a word."""
    rows = [
        '{"question": "q", "question": "p", "answer": "1"}',
        '{"question": "r", "answer": "1", "x": [{"a": 1, "a": 2}]}',
    ]
    path = write_jsonl(tmp_path / "a.jsonl", [*sums(2), *rows])
    said = [str(bad) for bad in loaded(model, [source(path)]).report.train[0].bad]
    assert said == [
        f"{path} row 3, column question: not JSON: an object has the key 'question' twice; take one out, or rename it",
        f"{path} row 4, column a: not JSON: an object has the key 'a' twice; take one out, or rename it",
    ]
    listed = tmp_path / "a.json"
    listed.write_text("[" + ",\n".join([json.dumps(row) for row in sums(2)] + rows) + "]\n")
    assert [(bad.number, bad.column) for bad in loaded(model, [source(listed)]).report.train[0].bad] == [
        (3, "question"),
        (4, "a"),
    ]
    listed.write_text('{"data": [], "data": []}')
    (error,) = loaded(model, [source(listed)]).errors
    assert isinstance(error, CorruptDataError)
    assert "a.json: an object has the key 'data' twice" in str(error)


def test_a_parquet_file_with_a_column_twice_is_refused(model: Path, tmp_path: Path) -> None:
    table = pa.Table.from_arrays([pa.array(["q"]), pa.array(["1"]), pa.array(["2"])], ["question", "answer", "answer"])
    pq.write_table(table, tmp_path / "a.parquet")
    (error,) = loaded(model, [source(tmp_path / "a.parquet")]).errors
    assert "a.parquet names the column 'answer' twice; give each its own name" in str(error)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"])
def test_text_of_wide_characters_is_refused_with_the_command_that_converts_it(
    model: Path, tmp_path: Path, name: str, encoding: str
) -> None:
    text = "question,answer\nq,1\n" if name == "a.csv" else "".join(json.dumps(row) + "\n" for row in sums(3))
    path, contents = tmp_path / name, text.encode(encoding)
    path.write_bytes(gzip.compress(contents) if name.endswith(".gz") else contents)
    (error,) = loaded(model, [source(path)]).errors
    label = {"utf-16-le": "UTF-16LE", "utf-16-be": "UTF-16BE"}.get(encoding, encoding.upper())
    assert f"{path} is {label}, not UTF-8; convert it: " in str(error)
    assert f"iconv -f {label} -t UTF-8" in str(error)


@pytest.mark.parametrize(
    ("name", "byte", "guess"),
    [("a.jsonl", b"\xe9", "ISO-8859-1"), ("a.jsonl", b"\x93", "WINDOWS-1252"), ("a.csv", b"\xe9", "ISO-8859-1")],
)
def test_text_of_one_byte_a_character_is_told_its_likely_encoding(
    model: Path, tmp_path: Path, name: str, byte: bytes, guess: str
) -> None:
    row = b'{"question": "caf%b", "answer": "%d"}\n' if name == "a.jsonl" else b"caf%b,%d\n"
    header = b"" if name == "a.jsonl" else b"question,answer\n"
    (tmp_path / name).write_bytes(header + b"".join(row % (byte, number) for number in range(5)))
    made = loaded(model, [source(tmp_path / name)])
    (error,) = made.errors
    assert f"; convert it: iconv -f {guess} -t UTF-8 {tmp_path / name} > NEW, or -f what wrote it" in str(error)
    assert str(error).count("iconv") == 1
