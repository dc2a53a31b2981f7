"""What rows have in common: duplicates, prompts with several references, and training problems in held-out sets."""

from pathlib import Path
from typing import Any

import pytest

from shared.errors import InvalidInputError
from tests.support.data import loaded, save_chat_model, source, sums, write_jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"), positions=200)


def test_training_prompts_of_a_held_out_set_are_dropped_or_refused(model: Path, tmp_path: Path) -> None:
    train = source(write_jsonl(tmp_path / "a.jsonl", [*sums(4), {"question": " WHAT is\n７ + 7? ", "answer": "14"}]))
    held_out = [source(write_jsonl(tmp_path / "e.jsonl", sums(2, 7)), prompt="Answer: {{ prompt }}")]
    made = loaded(model, [train], held_out)
    (report,) = made.report.train
    assert (report.contaminated, report.used) == (1, 4)
    assert report.examples["contaminated"] == [f"{tmp_path}/a.jsonl:5 is {tmp_path}/e.jsonl:1"]
    assert loaded(model, [train], held_out, contamination="off").report.train[0].used == 5
    refused = loaded(model, [train], held_out, contamination="refuse").errors
    with pytest.raises(InvalidInputError, match=r"1 training prompts stand in a held-out set, as .*a.jsonl:5 is"):
        raise refused[0]


def test_duplicates_are_dropped_kept_or_refused(model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [*sums(3), *sums(2)])
    held_out = [source(write_jsonl(tmp_path / "e.jsonl", sums(2, 50)))]
    dropped = loaded(model, [source(path), source(path)], held_out)
    assert [(r.duplicates, r.used) for r in dropped.report.train] == [(2, 3), (5, 0)]
    assert "none is left" in str(dropped.errors[0])
    kept = loaded(model, [source(path), source(path)], held_out, duplicates="keep")
    assert [r.used for r in kept.report.train] == [5, 5]
    assert len({item.id for items in kept.train for item in items}) == 10
    refused = loaded(model, [source(path)], held_out, duplicates="refuse")
    assert "2 of 5 rows ask what another row asks" in str(refused.errors[0])


FIRST = {"question": "Which one is true?", "passage": "p", "tool": [{"name": "t"}], "judge": "exact", "answer": "a"}


@pytest.mark.parametrize(
    ("changes", "duplicates"),
    [
        ({}, 1),
        ({"question": " which ONE\tis true? "}, 1),
        ({"passage": "another"}, 0),
        ({"tool": [{"name": "other"}]}, 0),
        ({"judge": "math"}, 0),
        ({"answer": "b"}, 0),
        ({"unread": 1}, 1),
    ],
)
def test_rows_are_duplicates_where_they_ask_the_same_of_the_policy_and_are_judged_alike(
    model: Path, tmp_path: Path, changes: dict[str, Any], duplicates: int
) -> None:
    rows = [{**FIRST, "question": "Which one is false?"}, FIRST, {**FIRST, **changes}]
    path = write_jsonl(tmp_path / "a.jsonl", [{"unread": 0, **row} for row in rows])
    table = {
        "source": str(path),
        "columns": {"prompt": "question", "verifier": "judge", "answer": "answer"},
        "prompt": "{{ passage }}\n{{ prompt }}",
        "tools": "tool",
    }
    held_out = [source(write_jsonl(tmp_path / "e.jsonl", sums(2, 50)))]
    made = loaded(model, [table], held_out)
    assert made.errors == []
    (report,) = made.report.train
    assert (report.duplicates, report.used) == (duplicates, 3 - duplicates)


def test_one_prompt_with_several_references_is_kept_and_told(model: Path, tmp_path: Path) -> None:
    rows = [*sums(3), {**sums(1)[0], "answer": "wrong"}]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    held_out = [source(write_jsonl(tmp_path / "e.jsonl", sums(2, 50)))]
    (report,) = loaded(model, [source(path)], held_out).report.train
    assert (report.duplicates, report.used, report.conflicts) == (0, 4, 1)
    assert f"as {path}:4 and {path}:1; the policy cannot tell them apart" in report.conflicts_in_words


def test_too_few_problems_to_hold_one_out_come_with_what_left_the_others_out(model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sums(6))
    (error,) = loaded(model, [source(path, filter="answer == '99'")]).errors
    said = "data.train has 0 usable problems, of data.train.0 (a): 6 rows, 0 used, 6 filtered: it needs 2"
    assert str(error).startswith(said)


def test_an_error_names_its_table_once(model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", sums(6))
    (error,) = loaded(model, [source(path, prompt="{{ question")]).errors
    assert str(error).startswith("data.train.0.prompt is '{{ question', which is no Jinja template")
