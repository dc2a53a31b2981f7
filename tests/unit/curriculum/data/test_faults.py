"""What is wrong with many rows in one way, or with a source as a whole, is said once, with the fix."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from services.cli.judging import make_judge
from services.cli.recipe import Recipe
from services.curriculum.data.check import check
from services.curriculum.data.report import Report
from services.curriculum.data.settings import TrainSettings
from shared.recipes import load
from tests.support.data import save_chat_model, settings, source, sums, write_jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"), positions=200)


def checked(model: Path, tmp_path: Path, **keys: Any) -> Report:
    """Twelve rows of sums, with what a recipe says of them."""
    recipe = keys.pop("recipe", {})
    table = source(write_jsonl(tmp_path / "a.jsonl", sums(12)), **keys)
    judge = make_judge(load(Recipe, None, {}, ["run.model=none"]))
    return check(settings(model, [table], **recipe), model, judge)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"prompt": "{{ qestion }}"},
            "row 1, column data.train.0.prompt: no such column: qestion; name one of question, answer, prompt; did "
            "you mean 'question'? (and so 11 more rows)",
        ),
        (
            {"columns": {"prompt": "nope", "reference": "answer"}},
            "row 1, column nope: no such column: the row has question, answer; name one of these in "
            "data.train.0.columns.prompt (and so 11 more rows)",
        ),
        (
            {"columns": {"prompt": "question", "reference": "{{ answr }}"}},
            "no such column: answr; name one of question, answer; did you mean 'answer'? (and so 11 more rows)",
        ),
        ({"filter": "qestion == 'q'"}, "column data.train.0.filter: no such column: qestion; name one of question"),
        (
            {"columns": {"prompt": "question", "reference": "answer", "verifier": "{{ 'maht' }}"}, "verifier": None},
            "verifier is 'maht'; known: countdown, math, code",
        ),
    ],
)
def test_one_fault_of_all_rows_is_one_line(model: Path, tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    report = checked(model, tmp_path, **keys)
    (problem,) = report.problems
    assert said in problem
    assert problem.count("a.jsonl") == 1
    (fault,) = report.train[0].faults()
    assert len(fault.rows) == len(report.train[0].bad) == 12
    (record,) = report.as_record()["train"][0]["faults"]
    assert (record["count"], record["rows"][-1]) == (12, f"{tmp_path}/a.jsonl:12")


def test_rows_whose_values_differ_have_one_fault(model: Path, tmp_path: Path) -> None:
    """A reason that tells a value of its row is the same reason."""
    rows = [{"question": f"q{i} " * 60, "answer": str(i)} for i in range(4)]
    rows += [{"question": f"q{i}", "answer": f"no mark {i}"} for i in range(4)]
    table = source(write_jsonl(tmp_path / "a.jsonl", ["{" + str(i) for i in range(3)] + rows))
    table["columns"] = {
        "prompt": "question",
        "reference": "{{ answer if question | length > 9 else answer | after('#') }}",
    }
    faults = check(settings(model, [table]), model).train[0].faults()
    assert [len(fault.rows) for fault in faults] == [3, 4, 4]
    assert "not JSON" in str(faults[0])
    assert "the prompt has " in str(faults[1])
    assert "'no mark 0' has no '#'" in str(faults[2])


def test_an_unknown_verifier_is_the_fault_of_no_row(model: Path, tmp_path: Path) -> None:
    report = checked(model, tmp_path, verifier="maht")
    (problem,) = report.problems
    assert problem.startswith("data.train.0: verifier is 'maht'; known: countdown, math")
    assert problem.endswith("did you mean 'math'?")
    assert report.train[0].bad == []


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("\n{% for m in messages %}{{ m.content }", "is no Jinja template: line 2: unexpected '}'; mend it there"),
        ("{% nope %}", "is no Jinja template: line 1: Encountered unknown tag 'nope'.; mend it there"),
    ],
)
def test_a_chat_template_that_is_none_is_named_once(model: Path, tmp_path: Path, template: str, said: str) -> None:
    file = tmp_path / "my.jinja"
    file.write_text(template)
    report = checked(model, tmp_path, chat_template=str(file))
    assert report.problems == [f"data.train.0: the chat template {file} {said}"]
    broken = save_chat_model(tmp_path / "broken", template)
    assert checked(broken, tmp_path).problems == [f"data.train.0: the chat template of the model {said}"]


def test_a_chat_template_that_refuses_is_named_by_its_file(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "my.jinja"
    file.write_text("{% for m in mesages %}{{ m.content }}{% endfor %}{{ mesages.x }}")
    (problem,) = checked(model, tmp_path, chat_template=str(file)).problems
    assert f"refused by the chat template {file}: UndefinedError: 'mesages' is undefined; did you mean 'messages'?" in (
        problem
    )
    assert problem.endswith("(and so 11 more rows)")


def test_responses_that_leave_no_room_are_the_fault_of_no_row(model: Path, tmp_path: Path) -> None:
    report = checked(model, tmp_path, recipe={"rollout": {"max_tokens": 300}})
    assert report.problems == [
        "rollout.max_tokens is 300, and the model's max_position_embeddings leaves room for 200 tokens of prompt and "
        "response together; set rollout.max_tokens below 200"
    ]
    assert report.train[0].bad == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("add_generation_prompt", False, "it is always true"),
        ("continue_final_message", True, "continues none"),
        ("tokenize", True, "what comes out is text in any case"),
        ("tools", [], "set the key tools of the table to a column"),
        ("chat_template", "x", "set the key chat_template of the table"),
        ("messages", [], "set columns.prompt to the column of messages"),
        ("max_length", 9, "set data.max_prompt_tokens"),
    ],
)
def test_variables_of_a_template_that_are_not_the_recipes_are_refused(name: str, value: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} = .* would have no effect: .*{said}.*; take it out"):
        TrainSettings.model_validate(source("a.jsonl", template_kwargs={name: value}))


@pytest.mark.parametrize(
    ("keys", "value", "said"),
    [
        (
            {"filter": "answer > 5"}, "7",
            "column answer, is '7': text, which data.train.0.filter uses with a number ('>' not supported between "
            "instances of 'str' and 'int'); make it a number, as by answer | float, or put the other side in quotes",
        ),
        (
            {"filter": "answer >= '5'"}, 7,
            "column answer, is 7: a number, which data.train.0.filter uses with text ('>=' not supported between "
            "instances of 'int' and 'str'); make it text, as by answer | string",
        ),
        ({"filter": "0 < answer"}, None, "column answer, is None: nothing, which data.train.0.filter uses with a num"),
        ({"filter": "info.n > answer"}, 7, "column info.n, is '1': text, which data.train.0.filter uses with a number"),
        ({"filter": "row['info']['n'] > 0"}, 7, "make it a number, as by row.info.n | float"),
        ({"filter": "(question, 1) | sort"}, 7, "column question, is 'q0': text, which data.train.0.filter uses with"),
        ({"filter": "answer < 9"}, [7], "column answer, is [7]: a list, which data.train.0.filter uses with a number"),
        ({"filter": "answer < 9"}, {"n": 7}, "as by answer.KEY"),
        (
            {"columns": {"prompt": "question", "reference": "{{ answer - 1 }}"}}, "7",
            "column answer, is '7': text, which data.train.0.columns.reference uses with a number",
        ),
        (
            {"filter": "answer * 1.5 > 2"}, "7",
            "column answer, is '7': data.train.0.filter cannot use it: can't multiply sequence by non-int of type",
        ),
    ],
)  # fmt: skip
def test_what_an_expression_cannot_compute_names_row_column_value_and_fix(
    model: Path, tmp_path: Path, keys: dict[str, Any], value: Any, said: str
) -> None:
    rows = [{"question": f"q{i}", "answer": value, "info": {"n": "1"}} for i in range(3)]
    table = source(write_jsonl(tmp_path / "a.jsonl", rows)) | keys
    report = check(settings(model, [table]), model)
    (fault,) = report.train[0].faults()
    assert str(fault).startswith(f"{tmp_path}/a.jsonl row 1, column ")
    assert said in str(fault)
    assert any(fix in str(fault) for fix in ("; mend ", "; make it ", "; fill it", "; take what"))
    assert "\n" not in str(fault)
    assert len(fault.rows) == 3
