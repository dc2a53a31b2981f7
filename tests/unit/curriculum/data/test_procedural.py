"""Rows of reasoning_gym: the same each time, others in a held-out set, and made again from their reference."""

from pathlib import Path
from typing import Any

import pytest
import reasoning_gym

from routershift import wire
from services.reward.verifiers.base import Item as Judged
from services.reward.verifiers.base import Verifier
from services.reward.verifiers.registry import make_verifiers
from shared.errors import InvalidInputError, NotFoundError
from tests.support.data import loaded, save_chat_model

TASK = "reasoning_gym:chain_sum"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("model"))


def test_rows_follow_from_the_config_and_are_made_again_from_the_reference(model: Path) -> None:
    table = {"source": TASK, "config": {"size": 20, "max_terms": 2, "max_digits": 3}}
    first, second = (loaded(model, [table], [{**table, "name": "sums"}]) for _ in range(2))
    assert first.errors == []
    items = first.train[0]
    assert len(items) == 20
    assert [item.prompt for item in items] == [item.prompt for item in second.train[0]]
    assert not {item.prompt for item in items} & {item.prompt for item in first.eval[0]}
    assert {item.verifier for item in items} == {"reasoning_gym"}
    reference = items[7].reference
    assert reference["config"] == {"max_terms": 2, "max_digits": 3}
    dataset = reasoning_gym.create_dataset(reference["dataset"], seed=0, size=20, **reference["config"])
    entry = reference["entry"]
    assert entry == wire.decode_struct(wire.encode_struct(reference))["entry"]
    assert {key: dataset[7][key] for key in ("question", "answer")} == {
        key: entry[key] for key in ("question", "answer")
    }
    assert items[7].prompt.startswith(entry["question"])
    assert dataset.score_answer(entry["answer"], entry) == 1


@pytest.mark.parametrize("task", ["leg_counting", "bf", "caesar_cipher"])
def test_rows_of_a_task_are_judged_by_the_verifier_that_they_name(
    model: Path, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = loaded(model, [{"source": f"reasoning_gym:{task}", "config": {"size": 4}}])
    assert made.errors == []
    items = [item for items in (*made.train, *made.eval) for item in items]
    assert len(items) == 4
    for item in items:
        verifier = make_verifiers({})[item.verifier]
        assert isinstance(verifier, Verifier)
        verifier.start()
        answer = item.reference["entry"]["answer"]
        assert verifier.verify(Judged("", f"<answer>{answer}</answer>", item.reference)).reward == 1
        assert verifier.verify(Judged("", "no idea", item.reference)).reward < 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("table", "error", "said"),
    [
        ({"source": "reasoning_gym:chain_sums"}, NotFoundError, "no such task; did you mean 'chain_sum'"),
        ({"source": TASK, "config": {"min_term": 2}}, InvalidInputError, "min_term"),
        ({"source": TASK, "config": {"min_terms": 9, "max_terms": 2}}, InvalidInputError, "max_terms.*; change config"),
        ({"source": "reasoning_gym:countdown"}, InvalidInputError, "the task is refused: its scorer evaluates"),
        (
            {"source": "reasoning_gym:word_ladder", "config": {"size": 10**9}},
            InvalidInputError,
            "cannot make row 1|size",
        ),
        ({"source": TASK, "config": {"size": 0}}, InvalidInputError, "size"),
    ],
)
def test_a_task_that_is_none_and_a_config_that_it_refuses(
    model: Path, table: dict[str, Any], error: type[Exception], said: str
) -> None:
    made = loaded(model, [table])
    with pytest.raises(error, match=f"data.train.0: source reasoning_gym.*{said}"):
        raise made.errors[0]


def test_a_configuration_is_a_table_or_a_name(model: Path) -> None:
    with pytest.raises(ValueError, match="config is 'main'; for source reasoning_gym:chain_sum it is a table"):
        loaded(model, [{"source": TASK, "config": "main"}])
    with pytest.raises(ValueError, match=r"config is \{.*; for source openai/gsm8k it is the name"):
        loaded(model, [{"source": "openai/gsm8k", "preset": "gsm8k", "config": {"size": 3}}])
