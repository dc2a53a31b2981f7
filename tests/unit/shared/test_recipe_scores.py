"""How router scores travel where a recipe does not say: by what the learner of the same recipe does with them."""

from pathlib import Path

import pytest

from services.cli.recipe import Recipe
from services.generation.settings import Settings as GenerationTables
from shared.errors import InvalidInputError
from shared.recipes import load


@pytest.mark.parametrize(
    ("learner", "expected"),
    [
        ("", "uint8"),
        ('routing_replay = "r3"', "uint8"),
        ('router_shift.layer_aggregation = "product"', "float16"),
        ('router_shift.mismatch_baseline = "subtract"', "float16"),
        ('routing_replay = "r3_weights"', "float16"),
    ],
)
def test_router_scores_take_one_byte_where_the_error_of_gamma_has_a_bound(
    tmp_path: Path, learner: str, expected: str
) -> None:
    """Generation reads it of the learner's table, in a process of its own; what a recipe says of it stays."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'run.model = "model"\n[learner]\n{learner}\n')
    settings = load(GenerationTables, recipe, {}).generation
    assert settings.router_scores == expected
    assert load(Recipe, recipe, {}).learner.needs_exact_scores is None or expected == "float16"
    said = load(GenerationTables, recipe, {}, ["generation.router_scores=uint8", "generation.max_tokens=9"]).generation
    assert (said.router_scores, said.max_tokens) == ("uint8", 9)


def test_layers_are_taken_out_of_routes_with_scores_alone() -> None:
    flags = ["run.model=m", "generation.router_layers=12"]
    assert load(GenerationTables, None, {}, flags).generation.router_layers == 12
    with pytest.raises(InvalidInputError, match="router_layers is 12 and router_export full"):
        load(GenerationTables, None, {}, [*flags, "generation.router_export=full"])
