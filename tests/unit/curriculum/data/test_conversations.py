"""Prompts are what transformers' `apply_chat_template` makes of them, to the token."""

from pathlib import Path
from typing import Any

import pytest

from services.curriculum.data.dataset import DataProblems
from shared.errors import NotFoundError, PreconditionError
from shared.models.tokenizer import load_tokenizer
from tests.support.data import TEMPLATES, loaded, save_chat_model, settings, source, sums, write_jsonl

SYSTEM = "Answer with the number alone."
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]


def first(model: Path, path: Path, **keys: Any) -> Any:
    made = loaded(model, [source(path, **keys)])
    assert made.errors == []
    return min((item for items in (*made.train, *made.eval) for item in items), key=lambda item: item.row.number)


@pytest.mark.parametrize(
    ("name", "system", "variables"),
    [
        ("qwen3", SYSTEM, {}),
        ("qwen3", None, {"enable_thinking": False}),
        ("olmoe", SYSTEM, {}),
        ("gpt-oss", SYSTEM, {"reasoning_effort": "high"}),
        ("gpt-oss", None, {}),
        ("deepseek", SYSTEM, {}),
        ("mixtral", None, {}),
    ],
)
def test_token_ids_are_those_of_transformers(
    tmp_path: Path, name: str, system: str | None, variables: dict[str, Any]
) -> None:
    model = save_chat_model(tmp_path / "model", TEMPLATES[name])
    path = write_jsonl(tmp_path / "train.jsonl", sums(3))
    item = first(model, path, template_kwargs=variables, **({"system": system} if system else {}))
    tokenizer = load_tokenizer(model)
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": "What is 0 + 0?"})
    expected = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False, **variables
    )
    assert item.token_ids.tolist() == expected
    assert expected.count(tokenizer.bos_token_id) == (name in ("olmoe", "deepseek", "mixtral"))
    assert item.prompt == "What is 0 + 0?"


def test_a_column_of_messages_and_one_of_tools_reach_the_template(tmp_path: Path) -> None:
    model = save_chat_model(tmp_path / "model")
    turns = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "and 2 + 2?"},
    ]
    rows = [{"messages": turns, "answer": "4", "tools": TOOLS}, *({"messages": turns[:1], "answer": "2", "tools": []},)]
    path = write_jsonl(tmp_path / "train.jsonl", rows)
    item = first(model, path, columns={"prompt": "messages", "answer": "answer"}, tools="tools", system=SYSTEM)
    expected = load_tokenizer(model).apply_chat_template(
        [{"role": "system", "content": SYSTEM}, *turns], tools=TOOLS, add_generation_prompt=True, tokenize=True,
        return_dict=False,
    )  # fmt: skip
    assert item.token_ids.tolist() == expected
    assert item.prompt == "1 + 1?\n2\nand 2 + 2?"


def test_a_file_replaces_the_models_template(tmp_path: Path) -> None:
    model = save_chat_model(tmp_path / "model", None)
    (tmp_path / "chat.jinja").write_text("Q: {{ messages[-1].content }}\nA:")
    path = write_jsonl(tmp_path / "train.jsonl", sums(2))
    item = first(model, path, chat_template=str(tmp_path / "chat.jinja"))
    tokenizer = load_tokenizer(model)
    assert item.token_ids.tolist() == tokenizer("Q: What is 0 + 0?\nA:", add_special_tokens=False).input_ids


@pytest.mark.parametrize("text", ["What is 0 + 0?", "<s>What is 0 + 0?"])
def test_without_a_template_a_text_begins_once(tmp_path: Path, text: str) -> None:
    model = save_chat_model(tmp_path / "model", None)
    path = write_jsonl(tmp_path / "train.jsonl", [{"question": text, "answer": "0"}, *sums(1, 5)])
    item = first(model, path, chat_template=False)
    assert item.token_ids.tolist() == load_tokenizer(model)("What is 0 + 0?").input_ids
    assert item.token_ids.tolist().count(load_tokenizer(model).bos_token_id) == 1


def test_a_jinja_prompt_sees_the_row_and_keeps_the_problem_apart(tmp_path: Path) -> None:
    model = save_chat_model(tmp_path / "model")
    path = write_jsonl(tmp_path / "train.jsonl", [{"a b": 1, "q": "x"}, {"a b": 2, "q": "y"}])
    item = first(
        model, path, columns={"prompt": "q", "answer": "a b"}, prompt="{{ prompt }} of {{ row['a b'] }}:\n{{ q }}\n"
    )
    assert (item.prompt, item.key, item.reference) == ("x of 1:\nx\n", "x", {"answer": 1})


def test_a_model_without_a_template_is_told_what_to_set(tmp_path: Path) -> None:
    model = save_chat_model(tmp_path / "model", None)
    path = write_jsonl(tmp_path / "train.jsonl", sums(3))
    with pytest.raises(PreconditionError, match=r"data.train.0.*no chat template; set data.train.0.chat_template to"):
        DataProblems(settings(model, [source(path)]))
    with pytest.raises(NotFoundError, match=r"data.train.0.chat_template is .*none.jinja, which cannot be read"):
        DataProblems(settings(model, [source(path, chat_template=str(tmp_path / "none.jinja"))]))


@pytest.mark.parametrize(
    ("template", "prompt", "system", "said"),
    [
        (
            "mixtral",
            "q",
            SYSTEM,
            "roles system, user are refused by .*must alternate.*; change them, or data",
        ),
        ("qwen3", [], None, "it is empty"),
        ("qwen3", 7, None, "expected text, or a list of messages"),
        ("qwen3", [{"content": "q"}], None, "has no role or no content"),
        ("qwen3", ["q"], None, "has no role or no content"),
        ("qwen3", [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], None, "the assistant's"),
        ("qwen3", [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}], SYSTEM, "take one out"),
    ],
)
def test_what_a_template_cannot_put_is_a_bad_row(
    tmp_path: Path, template: str, prompt: Any, system: str | None, said: str
) -> None:
    model = save_chat_model(tmp_path / "model", TEMPLATES[template])
    path = write_jsonl(tmp_path / "train.jsonl", [{"question": prompt, "answer": "1"}])
    made = loaded(model, [source(path, **({"system": system} if system else {}))])
    (report,) = made.report.train
    assert len(report.bad) == 1
    with pytest.raises(type(made.errors[0]), match=f"train.jsonl row 1, column question.*{said}"):
        raise made.errors[0]
