"""The routers of a folder are those of the model that is loaded from it."""

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from routershift.routing.routers import layout_of
from shared.models.layout import layout_of_folder
from tests.support.models import MOE_KINDS, save_model


@pytest.mark.parametrize("kind", MOE_KINDS)
def test_it_is_that_of_the_loaded_model(kind: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path, kind)
    assert layout_of_folder(folder) == layout_of(AutoModelForCausalLM.from_pretrained(folder)) is not None


def test_dense_and_unknown_models_have_none(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "qwen3_dense")
    assert layout_of_folder(folder) is None
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "of_tomorrow"}))
    assert layout_of_folder(folder) is None


def test_layers_for_multi_token_prediction_do_not_count(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 2}))
    layout = layout_of_folder(folder)
    assert layout is not None
    assert layout.layer_ids == (0, 1)
