"""Sizes of models: by their folders, and by their configs alone."""

import json
from pathlib import Path

import pytest

from routershift.errors import InvalidInputError, NotFoundError
from services.planner.catalogue import CONFIGS
from services.planner.model import described, of_config, read
from tests.support.models import KINDS, save_model

# Billions of parameters, in all and active for a token, as the models' cards and reports have them. Active ones include
# the embedding there.
PUBLISHED = {
    "qwen3-4b": (4.0, 4.0),
    "qwen3-30b-a3b": (30.5, 3.3),
    "qwen3-235b-a22b": (235.0, 22.0),
    "olmoe-1b-7b-0924": (6.9, 1.3),
    "mixtral-8x7b-v0.1": (46.7, 12.9),
    "gpt-oss-20b": (20.9, 3.6),
    "gpt-oss-120b": (116.8, 5.1),
    "deepseek-v3": (671.0, 37.0),
    "glm-4.5-air": (106.0, 12.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_config_says_what_the_weights_say(kind: str, tmp_path: Path) -> None:
    """Two ways to the same numbers: names of tensors differ between a folder and transformers."""
    folder = save_model(tmp_path / kind, kind)
    by_weights, by_config = read(folder), of_config(json.loads((folder / "config.json").read_text()))
    assert by_config.parameters == by_weights.parameters > 0
    assert by_config.active_parameters == by_weights.active_parameters
    assert by_config.layers == by_weights.layers
    assert len(by_config.layers) == by_config.number("num_hidden_layers")
    assert any(layer.experts for layer in by_config.layers) == (kind != "qwen3_dense")
    if kind != "qwen3_dense":
        assert by_config.active_parameters < by_config.parameters


def test_a_layer_by_hand(tmp_path: Path) -> None:
    """A Qwen3-MoE of 96 hidden values, 4 heads of 32, 2 key heads, 8 experts of 96 of which 2 are active."""
    layer = read(save_model(tmp_path)).layers[0]
    attention, norms = 96 * (128 + 64 + 64 + 128), 2 * 96 + 2 * 32
    assert layer.parameters == attention + norms + 8 * 3 * 96 * 96 + 8 * 96
    assert (layer.experts, layer.top_k, layer.inner) == (8, 2, 2 * 96)
    assert (layer.attended, layer.key, layer.normalises_queries) == (128, 64, True)


def test_every_model_of_the_catalogue_has_its_published_size() -> None:
    assert set(PUBLISHED) == set(CONFIGS)
    for name, (parameters, active) in PUBLISHED.items():
        model = described(name)
        assert model.parameters / 1e9 == pytest.approx(parameters, rel=0.01), name
        with_embedding = model.active_parameters + model.hidden * model.vocabulary
        assert model.active_parameters / 1e9 <= 1.07 * active, name
        assert with_embedding / 1e9 >= 0.93 * active, name


def test_a_name_may_have_an_owner_and_capitals() -> None:
    assert described("Qwen/Qwen3-30B-A3B").parameters == described("qwen3-30b-a3b").parameters


def test_what_is_no_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"'gpt-2'.*qwen3-30b-a3b.*config\.json"):
        described("gpt-2")
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe", "hidden_size": "wide"}')
    with pytest.raises(InvalidInputError, match="qwen3_moe"):
        described(str(tmp_path))
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    with pytest.raises(InvalidInputError, match="no language model can be made"):
        described(str(tmp_path))
