"""Every family through the whole trainer: what it recorded is what the learner computes, and it learns and exports."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from services.learner.trainer import Trainer
from shared.settings import RolloutSettings, RunSettings
from tests.support.models import MOE_KINDS, save_model
from tests.support.rollouts import load, random_groups
from tests.support.settings import learner_settings


@pytest.mark.parametrize("kind", MOE_KINDS)
@pytest.mark.parametrize("replay", ["none", "r3"])
def test_on_its_own_rollouts_a_family_sees_no_shift_and_learns(tmp_path: Path, kind: str, replay: Any) -> None:
    folder = save_model(tmp_path / "model", kind)
    groups = random_groups(load(folder), groups=3, samples=4)
    settings = learner_settings(
        algorithm="rspo",
        routing_replay=replay,
        optimizer__learning_rate=1e-3,
        activation_checkpointing=True,
        micro_batch_tokens=64,
    )
    trainer = Trainer(settings, RunSettings(model=folder), RolloutSettings(max_tokens=12))
    for group in groups:
        trainer.check(group)
    first = trainer.train_step(groups).diagnostics
    assert first["gamma_at_lag_zero"] == pytest.approx(1, abs=1e-3)  # of float16
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    losses = [first["loss"]] + [trainer.train_step(groups).diagnostics["loss"] for _ in range(3)]
    assert losses[-1] < losses[0]
    trainer.export_weights(tmp_path / "trained")
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "trained", dtype=torch.float32).eval()
    prompt = torch.arange(2, 12)[None]
    with torch.no_grad():
        trained = trainer._policy.model(prompt, use_cache=False).logits
        torch.testing.assert_close(reloaded(prompt, use_cache=False).logits, trained, rtol=1e-5, atol=1e-5)
