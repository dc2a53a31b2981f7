"""Every preset makes, of rows in the published form, references that the reward service judges by."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from services.curriculum.data.items import Item
from services.curriculum.data.presets import PRESETS
from services.reward.verifiers.base import Item as Judged
from services.reward.verifiers.base import Verifier
from services.reward.verifiers.code.rows import Calls, Cases, read_row
from services.reward.verifiers.registry import make_verifiers
from shared.errors import PreconditionError
from tests.support.data import loaded, save_chat_model, settings, write_jsonl
from tests.support.published_rows import ROWS, Program


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def verifiers() -> Iterator[dict[str, Verifier]]:
    """Those of the presets; without the code verifier where the machine cannot run its sandbox."""
    made = {name: verifier for name, verifier in make_verifiers({}).items() if isinstance(verifier, Verifier)}
    for name in ("math", "choice"):
        made[name].start()
    try:
        made["code"].start()
    except PreconditionError:
        del made["code"]
    yield made
    if "code" in made:
        made["code"].close()


def judged(item: Item, right: str | Program, verifiers: dict[str, Verifier]) -> bool:
    """Whether the right response, and no other, is right by the reference, which has all tests of its row."""
    if isinstance(right, Program):
        assert item.verifier == "code"
        task = read_row(item.reference)
        assert isinstance(task, Cases | Calls)
        assert len(task) == right.tests
        if "code" not in verifiers:
            return True
        right = f"```python\n{right.source}\n```"
    verifier = verifiers[item.verifier]
    return [verifier.verify(Judged(item.prompt, text, item.reference)).reward for text in (right, "(Z)")] == [1, 0]


def test_every_preset_is_tested() -> None:
    assert ROWS.keys() | {"reasoning_gym"} == PRESETS.keys()  # whose rows are made, and tested with their scorers


@pytest.mark.parametrize("preset", ROWS)
def test_rows_in_their_published_form_are_judged(
    model: Path, tmp_path: Path, verifiers: dict[str, Verifier], preset: str
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [row for row, _, _ in ROWS[preset]])
    made = loaded(model, [{"source": str(path), "preset": preset}])
    assert made.errors == []
    items = {item.row.number: item for items in (*made.train, *made.eval) for item in items}
    for number, (_, key, right) in enumerate(ROWS[preset], 1):
        assert items[number].key == key
        assert judged(items[number], right, verifiers), items[number].reference


@pytest.mark.parametrize("preset", ["dapo", "multiple_choice", "code_contests", "gsm8k"])
def test_rows_of_parquet_too(model: Path, tmp_path: Path, verifiers: dict[str, Verifier], preset: str) -> None:
    rows = [ROWS[preset][0], ROWS[preset][1]]
    if preset == "multiple_choice":
        rows[1] = ({"question": "More?", "choices": ["x", "y"], "answer": 0, "subject": "s"}, "more?", "Answer: A")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row for row, _, _ in rows]), tmp_path / "rows.parquet")
    made = loaded(model, [{"source": str(tmp_path / "rows.parquet"), "preset": preset}])
    assert made.errors == []
    items = {item.row.number: item for items in (*made.train, *made.eval) for item in items}
    assert all(judged(items[i], right, verifiers) for i, (_, _, right) in enumerate(rows, 1))


def test_a_question_with_other_choices_is_another_problem_and_with_the_same_in_another_order_is_not(
    model: Path, tmp_path: Path
) -> None:
    asked = "Which of these is true?"
    train = [
        {"question": asked, "choices": ["a", "b"], "answer": 0},
        {"question": asked, "choices": ["c", "d"], "answer": 0},
        {"question": asked, "choices": ["c", "d"], "answer": 0},
        {"question": asked, "options": ["f", "e"], "answer_index": 1},
    ]
    held_out = [{"question": asked, "options": ["e", "f"], "answer_index": 0}, train[0]]
    tables = [
        {"source": str(write_jsonl(tmp_path / f"{name}.jsonl", rows)), "preset": "multiple_choice"}
        for name, rows in (("train", train), ("test", held_out))
    ]
    made = loaded(model, tables[:1], tables[1:])
    assert made.errors == []
    (report,) = made.report.train
    assert (report.duplicates, report.contaminated, report.used) == (1, 2, 1)
    assert [item.row.number for item in made.train[0]] == [2]


def test_choices_stand_in_lines_of_their_own(model: Path, tmp_path: Path) -> None:
    row = {"question": "Capital?", "choices": ["Rome", "Paris"], "answer": 1}
    made = loaded(model, [{"source": str(write_jsonl(tmp_path / "rows.jsonl", [row])), "preset": "multiple_choice"}])
    ((item,),) = made.train
    assert item.prompt.startswith("Capital?\n\nA) Rome\nB) Paris\n\nThink, then end with the letter")


def test_what_the_table_says_wins_over_the_preset(model: Path, tmp_path: Path) -> None:
    rows = [{"q": f"{i}?", "gold": f"<<{i}>>", "level": i} for i in range(3)]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    table = {
        "source": str(path), "preset": "gsm8k", "columns": {"prompt": "q", "reference": "gold"}, "verifier": "exact",
        "prompt": "{{ prompt }} Say it.",
    }  # fmt: skip
    made = loaded(model, [table])
    assert made.errors == []
    item = min((item for items in (*made.train, *made.eval) for item in items), key=lambda item: item.row.number)
    assert (item.prompt, item.reference, item.verifier) == ("0? Say it.", {"answer": "<<0>>"}, "exact")
    assert settings(model, [{"source": "openai/gsm8k", "preset": "gsm8k"}]).data.train[0].config == "main"
    eurus_as_math = {"source": "x.jsonl", "preset": "eurus", "verifier": "math"}
    assert "verifier" not in settings(model, [eurus_as_math]).data.train[0].columns


@pytest.mark.parametrize(
    ("preset", "row", "said"),
    [
        ("gsm8k", {"question": "q", "answer": "no mark"}, "has no '####'"),
        ("math", {"problem": "q", "solution": "nothing"}, r"has no \\boxed"),
        ("multiple_choice", {"question": "q", "choices": ["a"], "answer": "both"}, "neither a letter nor the index"),
        ("openr1", {"problem": "q", "answer": None}, "the row has no answer"),
        ("prime", {"prompt": "q", "task_type": "verifiable_math", "verification_info": "{"}, "JSONDecodeError"),
    ],
)
def test_rows_that_do_not_have_the_form_say_so(
    model: Path, tmp_path: Path, preset: str, row: dict[str, Any], said: str
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(ValueError, match=f"rows.jsonl row 1, column .*{said}"):
        raise loaded(model, [{"source": str(path), "preset": preset}]).errors[0]
