"""`routershift settings`: every key of every table, however deep, in three forms."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field, SecretStr

from services.cli.commands import settings as command
from services.cli.main import main
from services.cli.recipe import Recipe
from services.cli.tables import tables
from shared.recipes import load
from shared.table import Table
from tests.support import cli


class Colour(StrEnum):
    RED = "red"
    BLUE = "blue"


class Inner(Table):
    """What is deeper."""

    rate: float = Field(1e-3, gt=0, lt=1, description="how fast")
    words: tuple[str, ...] = Field((), description="some")


class Outer(Table):
    """What is on top."""

    must: Path = Field(description="where")
    port: int = Field(7, ge=0, le=65535)
    kind: Literal["a", "b"] | None = Field(None, description="which")
    colour: Colour = Colour.RED
    key: SecretStr = SecretStr("open")
    inner: Inner = Inner()


def test_types_bounds_and_defaults_are_in_words() -> None:
    outer, inner = tables(Outer, "outer")
    assert (outer.name, outer.description, inner.name, inner.description) == (
        "outer", "What is on top.", "outer.inner", "What is deeper.",
    )  # fmt: skip
    assert {key.name: (key.type, key.default, key.is_required) for key in (*outer.keys, *inner.keys)} == {
        "must": ("path", None, True),
        "port": ("integer, 0 to 65535", 7, False),
        "kind": ("a | b", None, False),
        "colour": ("red | blue", "red", False),
        "key": ("text", "open", False),
        "rate": ("number, above 0 and below 1", 0.001, False),
        "words": ("list of text", [], False),
    }


def test_every_key_of_a_recipe_is_there_with_a_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "--json"]) == 0
    found = {record["key"]: record for record in json.loads(capsys.readouterr().out)}
    for key in ("run.steps", "learner.optimizer.learning_rate", "supervisor.step_seconds", "generation.vllm.dtype"):
        assert found[key]["description"]
    assert found["run.model"]["is_required"]
    assert found["learner.optimizer.beta1"]["environment"] == "ROUTERSHIFT_LEARNER__OPTIMIZER__BETA1"
    assert not [key for key, record in found.items() if not record["description"] or " object at " in str(record)]


def test_what_is_printed_is_what_a_recipe_takes(tmp_path: Path) -> None:
    """Every default that is shown may be written into a recipe."""
    flags = ["run.model=x"]
    arrays = tuple(table.name for table in tables(Recipe) if table.is_array)
    for table in tables(Recipe):
        for key in () if table.name.startswith(arrays) else table.keys:
            if key.default is not None and isinstance(key.default, str | int | float) and key.path != "redis.url":
                flags.append(f"{key.path}={key.default}")
    shown, plain = load(Recipe, None, {}, flags), load(Recipe, None, {}, ["run.model=x", "run.id=x"])
    assert shown.model_copy(update={"run": plain.run}) == plain


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("learner.optimizer", {"learner.optimizer.learning_rate"}),
        ("[learner.lora]", {"learner.lora.rank"}),
        ("learner", {"learner.algorithm", "learner.lora.rank"}),
        ("run.steps", {"run.steps"}),
        ("reward.verifiers.model", {"reward.verifiers.model.model"}),
        ("reward.verifiers", {"reward.verifiers.model.model", "reward.verifiers.math.timeout_seconds"}),
    ],
)
def test_one_table_and_those_in_it(name: str, known: set[str]) -> None:
    found = {key.path for table in command.choose(name) for key in table.keys}
    assert known <= found
    first = name.strip("[]").partition(".")[0]
    assert all(path.startswith(first) for path in found)


def test_an_unknown_table_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "lerner.optimiser"]) == 2
    assert "did you mean 'learner.optimizer'?" in capsys.readouterr().err


def test_text_and_markdown_show_the_same_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["settings", "learner.lora"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("[learner.lora]  Low-rank adapters")
    assert "  rank = 0  (integer, at least 0)\n" in text
    assert main(["settings", "learner.lora", "--markdown"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0] == "## `[learner.lora]`"
    assert any(row.startswith("| `rank` | integer, at least 0 | `0` | ") for row in rows)
    assert all(row.replace("\\|", "").count("|") == 5 for row in rows if row.startswith("|"))


def test_it_is_a_command_of_its_own(tmp_path: Path) -> None:
    ran = cli.run("settings", "supervisor", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "progress_seconds = 1800.0" in ran.stdout
