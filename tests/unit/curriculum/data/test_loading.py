"""From files to problems: every form is read, what is left out is counted, and what is wrong is named."""

import csv
import gzip
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from pydantic import ValidationError

from services.curriculum.data.check import check
from services.curriculum.data.dataset import DataProblems
from services.curriculum.data.hub import read_data_set
from services.curriculum.data.overlap import Loaded
from services.curriculum.data.settings import SourceSettings
from shared.errors import NotFoundError
from tests.support.data import loaded, save_chat_model, settings, source, sums, write_jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"), positions=200)


def questions(made: Loaded) -> list[str]:
    assert made.errors == []
    return sorted(item.prompt for items in (*made.train, *made.eval) for item in items)


def as_json(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text(json.dumps(rows, indent=1))


def as_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0], dialect="excel-tab" if path.suffix == ".tsv" else "excel")
        writer.writeheader()
        writer.writerows(rows)


def as_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def packed(write: Callable[[Path, list[dict[str, Any]]], object]) -> Callable[[Path, list[dict[str, Any]]], object]:
    def both(path: Path, rows: list[dict[str, Any]]) -> None:
        plain = path.with_suffix("")
        write(plain, rows)
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()

    return both


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.jsonl", write_jsonl),
        ("a.jsonl.gz", write_jsonl),
        ("a.ndjson", write_jsonl),
        ("a.json", as_json),
        ("b.json", write_jsonl),
        ("c.json", lambda path, rows: path.write_text(json.dumps({"data": rows}))),
        ("a.json.gz", packed(as_json)),
        ("a.csv", as_csv),
        ("a.csv.gz", packed(as_csv)),
        ("a.tsv", as_csv),
        ("a.parquet", as_parquet),
        ("a.parquet.gz", packed(as_parquet)),
    ],
)
def test_every_form_of_file_is_read(model: Path, tmp_path: Path, name: str, write: Callable[..., object]) -> None:
    rows = [*sums(5), {"question": 'Say "a,\nb", é\t😀', "answer": "1"}]
    write(tmp_path / name, rows)
    made = loaded(model, [source(tmp_path / name)])
    assert questions(made) == sorted(row["question"] for row in rows)
    assert {item.reference["answer"] for items in (*made.train, *made.eval) for item in items} == {
        row["answer"] for row in rows
    }


def test_a_glob_reads_its_files_in_order_and_rows_are_named_by_file_and_number(model: Path, tmp_path: Path) -> None:
    for part in (1, 0):
        (tmp_path / f"p{part}").mkdir()
        write_jsonl(tmp_path / f"p{part}" / "rows.jsonl", sums(3, 10 * part))
    write_jsonl(tmp_path / "other.jsonl", sums(3, 50))
    held_out = [source(write_jsonl(tmp_path / "eval.jsonl", sums(2, 90)))]
    made = loaded(model, [source(tmp_path / "p*" / "*.jsonl"), source(tmp_path / "other.jsonl")], held_out)
    assert made.errors == []
    first, second = tmp_path / "p0/rows.jsonl", tmp_path / "p1/rows.jsonl"
    assert [item.id for item in made.train[0]] == [
        "rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3", f"{second}:1", f"{second}:2", f"{second}:3",
    ]  # fmt: skip
    assert [item.row.file for item in made.train[0]] == [str(first)] * 3 + [str(second)] * 3
    assert [item.id for item in made.train[1]] == ["other.jsonl:1", "other.jsonl:2", "other.jsonl:3"]


def test_a_data_set_is_read_by_name(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder stands in for one of the hub: the library takes both."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "sums").mkdir()
    write_jsonl(tmp_path / "sums" / "train.jsonl", sums(4))
    write_jsonl(tmp_path / "sums" / "test.jsonl", sums(2, 40))
    named = SourceSettings.model_validate(source("sums"))
    rows = list(read_data_set(named, "test"))
    assert [(row.file, row.number, row.columns) for row in rows] == [
        ("sums/test", number, columns) for number, columns in enumerate(sums(2, 40), 1)
    ]
    assert len(list(read_data_set(named.model_copy(update={"split": "train[:3]"}), "test"))) == 3


def test_a_data_set_that_is_not_there_is_one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    made = loaded(model, [source("nobody/nothing-of-that-name", split="validation")])
    assert isinstance(made.errors[0], NotFoundError)
    assert str(made.errors[0]).startswith("data.train.0: source nobody/nothing-of-that-name, split validation, cannot")
    assert "\n" not in str(made.errors[0])


@pytest.mark.parametrize("answers", [False, True])
def test_a_hub_that_cannot_be_reached_is_one_line(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], answers: bool
) -> None:
    """Nothing listens, or what listens gives no answer: the library would ask six times, and say so each time."""
    (tmp_path / "somebody___sums").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        if not answers:
            listening.close()
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path)
        for setting in ("datasets.config.HF_HUB_OFFLINE", "huggingface_hub.constants.HF_HUB_OFFLINE"):
            monkeypatch.setattr(setting, False)  # as a dry run in the same process has set them
        made = loaded(model, [source("nobody/nothing", config="main")])
    (error,) = [error for error in made.errors if "nobody" in str(error)]
    assert isinstance(error, NotFoundError)
    assert str(error).startswith(
        f"data.train.0: source nobody/nothing (main), split train, cannot be loaded: http://127.0.0.1:{port} cannot be "
        "reached within HF_HUB_ETAG_TIMEOUT = 0.2 s ("
    )
    assert f"the cache {tmp_path} lacks it: it has somebody/sums. Where there is a network, run python -c" in str(error)
    assert 'datasets.load_dataset("nobody/nothing", "main")' in str(error)
    assert capfd.readouterr() == ("", "")


def test_dotted_paths_expressions_and_fields_make_the_reference(model: Path, tmp_path: Path) -> None:
    rows = [
        {"q": f"q{i}", "reward_model": {"ground_truth": i, "style": "rule"}, "tags": ["x", f"t{i}"], "n.m": i / 2}
        for i in range(3)
    ]
    columns = {
        "prompt": "q", "answer": "reward_model.ground_truth", "tag": "tags.1", "dotted": "n.m",
        "text": "{{ tags | join('+') }} of {{ q }}", "twice": "{{ reward_model.ground_truth * 2 }}", "id": "q",
        "priority": "n.m",
    }  # fmt: skip
    made = loaded(model, [source(write_jsonl(tmp_path / "a.jsonl", rows), columns=columns)])
    assert made.errors == []
    items = {item.id: item for items in (*made.train, *made.eval) for item in items}
    assert items["q1"].reference == {"answer": 1, "tag": "t1", "dotted": 0.5, "text": "x+t1 of q1", "twice": 2}
    assert [items[f"q{i}"].priority for i in range(3)] == [0, 0.5, 1]


def test_a_reference_that_is_a_table_is_taken_whole_and_rows_name_their_verifier(model: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"q": "a", "tests": {"cases": [{"input": "1", "output": "2"}]}, "kind": "code"},
        {"q": "b", "tests": "7", "kind": "math"},
    ]
    columns = {"prompt": "q", "reference": "tests", "verifier": "kind"}
    made = loaded(model, [source(write_jsonl(tmp_path / "a.jsonl", rows), columns=columns, verifier=None)])
    items = {item.prompt: item for items in (*made.train, *made.eval) for item in items}
    assert (items["a"].verifier, items["a"].reference) == ("code", rows[0]["tests"])
    assert (items["b"].verifier, items["b"].reference) == ("math", {"answer": "7"})


def test_held_out_problems_are_the_same_for_every_seed_and_never_trained_on(model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sums(60))
    one, two = (
        DataProblems(settings(model, [source(path)], held_out_share=0.2, run={"seed": seed})) for seed in (0, 1)
    )
    (split,) = one.held_out()
    held_out = {problem.id for problem in split.problems}
    assert (split.name, split.every) == ("held-out", 20)
    assert two.held_out() == one.held_out()
    assert 4 <= len(held_out) <= 24
    first, second = ([made.train(index).id for index in range(len(made))] for made in (one, two))
    assert set(first) == set(second) == {f"a.jsonl:{i}" for i in range(1, 61)} - held_out
    assert first != second
    write_jsonl(path, sums(80))
    more = DataProblems(settings(model, [source(path)], held_out_share=0.2))
    assert held_out <= {problem.id for problem in more.held_out()[0].problems}


def test_each_held_out_set_has_its_own_name_sampling_and_cap(model: Path, tmp_path: Path) -> None:
    train = source(write_jsonl(tmp_path / "a.jsonl", sums(5)))
    far = write_jsonl(tmp_path / "far.jsonl", sums(30, 50))
    tables = [
        source(far, problems=4, sampling={"n": 4, "temperature": 0.5}, pass_at_k=[4], every=40),
        source(far, name="greedy", sampling={"n": 1, "temperature": 0, "max_tokens": 9}),
    ]
    first, second = DataProblems(settings(model, [train], tables)).held_out()
    assert (first.name, first.sampling.n, first.pass_at_k, first.every) == ("far", 4, (4,), 40)
    assert (second.name, second.sampling.max_tokens, second.every) == ("greedy", 9, 20)
    assert first.problems == second.problems[:4]
    assert len(second.problems) == 30
    assert all(problem.token_ids for problem in second.problems)
    with pytest.raises(ValidationError, match="two tables of eval have the name 'far'"):
        settings(model, [train], [source(far), source(far)])


def test_of_two_rows_one_is_held_out(model: Path, tmp_path: Path) -> None:
    for start in range(8):
        path = write_jsonl(tmp_path / "a.jsonl", sums(2, start))
        for share in (0.001, 0.999):
            made = DataProblems(settings(model, [source(path)], held_out_share=share))
            assert (len(made), len(made.held_out()[0].problems)) == (1, 1)


def test_filters_and_lengths_leave_rows_out_without_calling_them_bad(model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*sums(6), {"question": "q" * 40, "answer": "1"}])
    made = loaded(model, [source(path, filter="answer | int != 4")], max_prompt_tokens=50)
    (report,) = made.report.train
    assert made.errors == []
    assert (report.rows, report.filtered, report.too_long, len(report.bad)) == (7, 1, 1, 0)


def test_a_check_says_what_a_start_would_do(model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*sums(40), {"question": "q"}])

    def judge(verifier: str, reference: Any, environment: str = "") -> str | None:
        return "no threes" if reference["answer"] == "6" else None

    report = check(settings(model, [source(path)], max_bad_share=0.5), model, judge)
    (train,) = report.train
    assert report.problems == []
    assert train.used + train.held_out + len(train.bad) == train.rows == 41
    found = sorted((row.column, "no threes" in row.reason) for row in train.bad)
    assert found == [("answer", False), ("reference", True)]
    assert train.first_prompt.startswith("<|im_start|>user\nWhat is")
    assert sum(count for _, _, count in train.histogram()) == train.used
    assert all(low <= high for low, high, _ in train.histogram())
    assert json.loads(json.dumps(report.as_record()))["train"][0]["rows"] == 41
    strict = check(settings(model, [source(path)], max_bad_share=0), model)
    assert len(strict.problems) == 1
