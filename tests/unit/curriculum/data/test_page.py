"""What docs/how-to/use-your-own-data.md shows is what settings take, and what it lists is what there is."""

import re
import tomllib
from pathlib import Path

import pytest

from services.curriculum.data.presets import PRESETS
from services.curriculum.data.settings import ROLES
from services.curriculum.settings import Settings
from shared.recipes import load

PAGE = (Path(__file__).parents[4] / "docs" / "how-to" / "use-your-own-data.md").read_text()
BLOCKS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_every_recipe_of_the_page_is_one(block: int, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(f'[run]\nmodel = "model"\n{BLOCKS[block]}')
    read = load(Settings, recipe, {})
    assert len(read.data.train) == len(tomllib.loads(BLOCKS[block])["data"]["train"])


def test_every_preset_and_every_role_of_a_column_is_there() -> None:
    assert [name for name in (*PRESETS, *ROLES) if f"`{name}`" not in PAGE and f"`{name}:" not in PAGE] == []
