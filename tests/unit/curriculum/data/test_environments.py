"""Rows that are played as episodes: what of them travels, which are the same, and what cannot be told of them."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from routershift.v1 import trajectory_pb2 as pb
from services.curriculum.data.dataset import DataProblems
from services.curriculum.prompts import make_prompt
from shared.models.tokenizer import load_tokenizer
from shared.settings import RolloutSettings, RunSettings
from tests.support.data import TEMPLATES, loaded, save_chat_model, settings, source, sums, write_jsonl


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"))


def prompt_of(problems: DataProblems) -> pb.Prompt:
    return make_prompt(0, problems.problem(0), RunSettings(id="one", model=Path("model")), RolloutSettings())


def mazes(count: int) -> list[dict[str, Any]]:
    """The same words each time: the maze itself is what an episode begins from."""
    return [{"question": "Find the way out.", "maze": {"seed": i}} for i in range(count)]


def maze_source(path: Path, **keys: Any) -> dict[str, Any]:
    return {"source": str(path), "columns": {"prompt": "question", "reference": "maze"}, "environment": "maze", **keys}


def test_a_conversation_travels_as_messages_and_is_counted_as_it_is_rendered(model: Path, tmp_path: Path) -> None:
    rows = [{"q": [{"role": "user", "content": f"{i}?"}], "a": str(i)} for i in range(3)]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    table = source(path, columns={"prompt": "q", "answer": "a"}, environment="calculator", system="Be brief.")
    problems = DataProblems(settings(model, [table]))
    prompt = prompt_of(problems)
    number = prompt.messages[1].content.rstrip("?")
    assert (prompt.environment, prompt.verifier, prompt.text, list(prompt.token_ids)) == (
        "calculator",
        "math",
        "0?",
        [],
    )
    assert [(m.role, m.content) for m in prompt.messages] == [
        (pb.ROLE_SYSTEM, "Be brief."),
        (pb.ROLE_USER, f"{number}?"),
    ]
    assert dict(prompt.reference) == {"answer": number}
    (report,) = problems.report.train
    assert report.as_record()["environments"] == {"calculator": 2}  # of three rows one is held out
    assert report.lengths.min() > 10


def test_a_text_travels_as_the_ids_of_its_tokens(model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", sums(3))
    problems = DataProblems(settings(model, [source(path, environment="calculator", chat_template=False)]))
    prompt = prompt_of(problems)
    assert prompt.text.startswith("What is")
    assert list(prompt.token_ids) == load_tokenizer(model)(prompt.text).input_ids
    assert not prompt.messages


def test_without_an_environment_nothing_of_it_is_said(model: Path, tmp_path: Path) -> None:
    prompt = prompt_of(DataProblems(settings(model, [source(write_jsonl(tmp_path / "train.jsonl", sums(3)))])))
    assert (prompt.environment, len(prompt.messages)) == ("", 0)
    assert len(prompt.token_ids)


def test_an_environment_may_reward_alone(model: Path, tmp_path: Path) -> None:
    problems = DataProblems(settings(model, [maze_source(write_jsonl(tmp_path / "train.jsonl", mazes(5)))]))
    prompt = prompt_of(problems)
    assert (prompt.environment, prompt.verifier) == ("maze", "")
    assert problems.report.train[0].verifiers == {}


def test_episodes_that_begin_from_other_states_are_other_problems(model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", [*mazes(6), mazes(1)[0]])
    held_out = write_jsonl(tmp_path / "test.jsonl", mazes(8)[4:])
    made = loaded(model, [maze_source(path)], [maze_source(held_out)])
    (report,) = made.report.train
    assert made.errors == []
    assert (report.rows, report.duplicates, report.contaminated, report.used) == (7, 1, 2, 4)


def test_a_column_may_say_what_makes_a_problem(model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", mazes(6))
    held_out = write_jsonl(tmp_path / "test.jsonl", mazes(1))
    columns = {"prompt": "question", "reference": "maze", "problem": "{{ (maze.seed // 2) | string }}"}
    made = loaded(model, [maze_source(path, columns=columns)], [maze_source(held_out, columns=columns)])
    (report,) = made.report.train
    assert (report.contaminated, report.used) == (2, 4)


@pytest.mark.parametrize("trained", ["calculator", None])
def test_a_problem_of_an_environment_is_the_same_as_one_in_one_turn(
    model: Path, tmp_path: Path, trained: str | None
) -> None:
    """Whichever of both is held out."""
    train, held_out = write_jsonl(tmp_path / "train.jsonl", sums(6)), write_jsonl(tmp_path / "test.jsonl", sums(2))
    evaluated = "calculator" if trained is None else None
    made = loaded(model, [source(train, environment=trained)], [source(held_out, environment=evaluated)])
    assert made.report.train[0].contaminated == 2


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"role": "developer", "content": "q"}, "unknown role; expected one of assistant, user, tool, system"),
        ({"role": "user", "content": [{"type": "text", "text": "q"}]}, "no text alone"),
        ({"role": "user", "content": "q", "tool_calls": [{"name": "add"}]}, "no text alone"),
        ({"role": "user", "tool_calls": [{"name": "add"}]}, "no text alone"),
    ],
)
def test_what_a_prompt_cannot_carry_is_a_bad_row(tmp_path: Path, message: dict[str, Any], said: str) -> None:
    model = save_chat_model(tmp_path / "model", TEMPLATES["gpt-oss"])
    rows = [{"question": [message, {"role": "user", "content": f"{i}"}], "answer": "1"} for i in range(3)]
    made = loaded(model, [source(write_jsonl(tmp_path / "train.jsonl", rows), environment="calculator")])
    (report,) = made.report.train
    assert len(report.bad) == 3
    assert said in str(report.bad[0])
    assert report.bad[0].column == "question"


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"tools": "tools"}, "tools is 'tools', and environment 'calculator' has tools of its own"),
        ({"template_kwargs": {"enable_thinking": False}}, "template_kwargs is .* renders its prompts by the"),
        ({"chat_template": "other.jinja"}, "chat_template is other.jinja, and environment 'calculator'"),
        ({"environment": ""}, "at least 1 character"),
    ],
)
def test_what_an_environment_does_itself_is_not_the_tables_to_set(
    model: Path, tmp_path: Path, keys: dict[str, Any], said: str
) -> None:
    path = write_jsonl(tmp_path / "train.jsonl", sums(3))
    with pytest.raises(ValidationError, match=said):
        settings(model, [source(path, **{"environment": "calculator", **keys})])
