"""Sequences in one row, against each of them alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, PreTrainedModel

from services.learner.model.attention import Attention, choose
from services.learner.model.isolation import check_isolation, check_windows, isolate
from shared.errors import PreconditionError
from tests.support.models import MOE_KINDS, VOCABULARY, save_model
from tests.support.rollouts import load
from tests.support.settings import learner_settings
from tests.support.training import make

LENGTHS = (11, 7, 5, 12)


def own(model: PreTrainedModel) -> Attention:
    return Attention(model.config._attn_implementation)


@pytest.mark.parametrize("kind", [*MOE_KINDS, "qwen3_dense"])
def test_a_sequence_does_not_see_its_neighbours(tmp_path: Path, kind: str) -> None:
    model = load(save_model(tmp_path, kind))
    check_isolation(model, own(model))
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randint(2, VOCABULARY, (1, length), generator=generator) for length in LENGTHS]
    positions = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    with torch.no_grad():
        alone = torch.cat([model(sequence).logits for sequence in sequences], dim=1)
        packed = model(torch.cat(sequences, dim=1), position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(packed, alone, rtol=0, atol=2e-5)


def test_a_family_without_masks_for_packed_sequences_is_refused(tmp_path: Path) -> None:
    """Were gpt_oss not helped, it would be refused too."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=1, n_head=2, initializer_range=0.2)
    bloom = BloomForCausalLM(config).eval()
    isolate(bloom)
    gpt_oss = AutoModelForCausalLM.from_pretrained(save_model(tmp_path, "gpt_oss")).eval()
    for model in (bloom, gpt_oss):
        with pytest.raises(PreconditionError, match="see each other"):
            check_isolation(model, own(model))


def test_rows_that_see_each_other_are_refused(tmp_path: Path) -> None:
    """Each row alone is as it should be."""
    model = load(save_model(tmp_path))
    decoder: Any = model.model
    decoder.norm.register_forward_hook(lambda module, inputs, output: output + output.mean(dim=0) - output[0])
    with pytest.raises(PreconditionError, match="see each other"):
        check_isolation(model, own(model))


def test_llama4_takes_no_packed_row_that_is_longer_than_an_attention_chunk(tmp_path: Path) -> None:
    model = load(save_model(tmp_path, "llama4", attention_chunk_size=8))
    row = torch.arange(2, 14)[None]
    model(row, position_ids=torch.arange(12)[None], use_cache=False)
    with pytest.raises(PreconditionError, match="rows of 12 tokens"):
        model(row, position_ids=torch.arange(12)[None] % 6, use_cache=False)
    model(row[:, :8], position_ids=torch.arange(8)[None] % 4, use_cache=False)


def test_windows_that_attention_is_not_told_of_are_refused(tmp_path: Path) -> None:
    """Qwen2-MoE leaves them to the mask."""
    windows = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2}
    model = load(save_model(tmp_path, "qwen2_moe", **windows))
    chosen = choose(model, learner_settings())
    chosen.set_on(model)
    with pytest.raises(PreconditionError, match=r'layers with windows, such as 0, .*attn_implementation = "masked"'):
        check_windows(model, chosen)
    with pytest.raises(PreconditionError, match="layers with windows"):
        make(tmp_path)
    make(tmp_path, attn_implementation="masked").close()
    make(save_model(tmp_path / "told", "qwen3_moe", **windows)).close()
