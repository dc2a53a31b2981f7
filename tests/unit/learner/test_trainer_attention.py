"""A whole step with and without a mask: the same loss, gradients, gamma, replay and reference, whatever else is set."""

from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.learner.model.attention import SEGMENTS
from shared.errors import PreconditionError
from tests.support.models import save_model
from tests.support.rollouts import load, perturbed, random_groups
from tests.support.training import PLAIN, gradients, make

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "r3": ("qwen3_moe", {"routing_replay": "r3"}),
    "r2 and a pass before": ("qwen3_moe", {"routing_replay": "r2", "proximal": "recompute"}),
    "lora with its reference": ("qwen3_moe", {"lora__rank": 8, "kl_coefficient": 0.5, "routing_replay": "r3"}),
    "recomputed activations": ("qwen3_moe", {"activation_checkpointing": True, "kl_coefficient": 0.5}),
    "latent attention": ("deepseek_v3", {"routing_replay": "r3", "activation_checkpointing": True}),
    "sinks and windows": ("gpt_oss", {"routing_replay": "r3", "activation_checkpointing": True}),
    "a head with all logits": ("qwen2_moe", {"entropy_coefficient": 0.1}),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_that_of_rows_with_a_mask(tmp_path: Path, case: str) -> None:
    kind, settings = CASES[case]
    folder = save_model(tmp_path / "model", kind)
    groups = random_groups(perturbed(load(folder), 0.005), groups=4, samples=4)
    common = {"algorithm": "rspo", "micro_batch_tokens": 100, **PLAIN, **settings}
    masked, flat = (make(folder, attn_implementation=name, **common) for name in ("masked", "auto"))
    assert masked._policy.attention.name != flat._policy.attention.name == SEGMENTS
    reports = [trainer.train_step(groups, kept=range(4)) for trainer in (masked, flat)]
    assert reports[1].diagnostics == pytest.approx(dict(reports[0].diagnostics), rel=1e-4, abs=1e-5)
    expected = gradients(masked)
    assert expected.keys() == gradients(flat).keys() != set()
    for name, gradient in gradients(flat).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=2e-6, msg=name)
    assert reports[0].kept.keys() == reports[1].kept.keys() != set()
    for place, tokens in reports[0].kept.items():
        for own, other in zip(astuple(reports[1].kept[place]), astuple(tokens), strict=True):
            np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-5)


def test_what_a_model_cannot_have_is_refused_before_training(tmp_path: Path) -> None:
    folder = save_model(tmp_path, "llama4")
    with pytest.raises(PreconditionError, match=r"learner\.attn_implementation"):
        make(folder, attn_implementation="segments")
