"""Floating-point operations of a token, against a count from the model's dimensions."""

from pathlib import Path

from services.learner.distributed.ranks import Ranks
from services.learner.model.policy import Policy
from services.learner.settings import LearnerSettings, LoraSettings
from shared.settings import RolloutSettings, RunSettings
from tests.support.models import save_model


def policy(folder: Path, settings: LearnerSettings) -> Policy:
    return Policy(settings, RunSettings(model=folder), RolloutSettings(), Ranks.open("cpu"))


def test_a_token_meets_the_chosen_experts_and_no_other(tmp_path: Path) -> None:
    made = policy(save_model(tmp_path), LearnerSettings())
    config = made.model.config
    expected = 0
    for name, parameter in made.model.named_parameters():
        if "embed_tokens" not in name:
            share = config.num_experts_per_tok / config.num_experts if "experts" in name.split(".") else 1
            expected += 6 * parameter.numel() * share
    assert made.flops_per_token == expected
    assert expected < 6 * sum(parameter.numel() for parameter in made.model.parameters())


def test_frozen_weights_have_no_gradient_of_their_own(tmp_path: Path) -> None:
    folder = save_model(tmp_path)
    full = policy(folder, LearnerSettings()).flops_per_token
    adapted = policy(folder, LearnerSettings(lora=LoraSettings(rank=1, targets="attention"))).flops_per_token
    assert 4 / 6 < adapted / full < 1
