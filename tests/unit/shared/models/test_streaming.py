"""A model read by parts is the model that transformers makes of the folder, bit for bit."""

from pathlib import Path

import pytest
import torch

from shared.models.loading import load_config
from shared.models.streaming import Parts
from tests.support.models import KINDS, LAYERS, save_model
from tests.support.rollouts import load


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_the_model(kind: str, tmp_path: Path) -> None:
    whole = load(save_model(tmp_path, kind))
    expected = dict((*whole.named_parameters(), *whole.named_buffers()))
    parts = Parts(load_config(tmp_path), tmp_path)
    seen: set[str] = set()
    for layer in (*range(LAYERS), None):
        with parts.read(layer) as model:
            weights = {name for name, tensor in model.named_parameters() if not tensor.is_meta}
            assert all((f"layers.{layer}." in name) == (layer is not None) for name in weights)
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if not tensor.is_meta:
                    assert torch.equal(tensor, expected[name]), name
                    seen.add(name)
        assert all(parameter.is_meta for parameter in model.parameters())
    assert seen == expected.keys()
