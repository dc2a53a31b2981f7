"""What `init` makes of rows with choices, inputs and abilities."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from services.cli.judging import make_judge
from services.cli.main import main
from services.cli.recipe import Recipe
from services.curriculum.data.check import check
from services.curriculum.data.loading import load as load_data
from services.curriculum.data.settings import TrainSettings
from shared.recipes import load
from tests.support.data import write_jsonl
from tests.support.models import save_model
from tests.support.published_rows import verl


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "tiny", "olmoe", max_position_embeddings=2048)


def guessed(model: Path, tmp_path: Path, rows: Sequence[Mapping[str, Any]]) -> tuple[str, Recipe]:
    """What `init` wrote, and the recipe that it is."""
    file, output = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "made.toml"
    assert main(["init", str(model), str(file), "--output", str(output)]) == 0
    return output.read_text(), load(Recipe, output, {})


def test_columns_of_choices_are_put_to_the_policy(model: Path, tmp_path: Path) -> None:
    rows = [
        {"question": f"Which is {i}?", "A": f"{i}", "B": "b", "C": "c", "D": "d", "answer": "A", "level": i}
        for i in range(9)
    ]
    said, recipe = guessed(model, tmp_path, rows)
    assert recipe.data.train[0].preset == "multiple_choice"
    assert "# not read: level; name a column in prompt for the policy to see it" in said
    items = load_data(recipe, model).train[0]
    assert all("A) " in item.prompt and "D) d" in item.prompt for item in items)


def test_the_input_of_an_instruction_is_put_to_the_policy(model: Path, tmp_path: Path) -> None:
    rows = [{"instruction": "Add one.", "input": str(i), "output": f"o{i}"} for i in range(9)]
    said, recipe = guessed(model, tmp_path, rows)
    assert "# prompt: the column instruction, and below it the column input where it has text" in said
    assert recipe.data.train[0].prompt == "{{ instruction }}{% if input %}\n\n{{ input }}{% endif %}"
    report = check(recipe, model)
    assert (report.train[0].duplicates, report.problems) == (0, [])


def test_rows_of_verl_that_are_no_mathematics_are_not_judged_as_such(model: Path, tmp_path: Path) -> None:
    programs = [
        verl(f"Program {i}", json.dumps({"inputs": ["1"], "outputs": ["1"]})) | {"ability": "code"} for i in range(9)
    ]
    said, _ = guessed(model, tmp_path, programs)
    assert "preset = 'dapo': 9 of 9 rows have its columns, judged by code" in said
    (tmp_path / "made.toml").unlink()
    puzzles = [verl(f"Puzzle {i}", f"word {i}") | {"ability": "logic", "data_source": "zebra"} for i in range(9)]
    said, recipe = guessed(model, tmp_path, puzzles)
    assert "# CHOOSE verifier: the column ability says logic, and exact is but a guess" in said
    assert recipe.data.train[0].verifier == "exact"
    table = {"source": str(tmp_path / "rows.jsonl"), "preset": "verl", "chat_template": False}
    own = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={"train": (TrainSettings.model_validate(table),)})}
    )
    (problem,) = check(own, model, make_judge(own)).problems
    assert "column verifier, is 'logic': verifier is 'logic'; known: countdown" in problem
    assert problem.endswith("(and so 8 more rows)")
