"""Every setting has a rule for a start that changes it, and only settings that exist have one."""

import pytest

from services.cli.recipe import Recipe
from services.cli.tables import tables
from services.environments.registry import kinds as environments
from services.reward.verifiers.registry import kinds
from shared.resuming import RULES, Rule, rule_of, settings_of

VERIFIERS = "reward.verifiers"
OF_RECIPE = {key.path for table in tables(Recipe) for key in table.keys} - {VERIFIERS}
OF_VERIFIERS = {
    f"{VERIFIERS}.{key.name}" for verifier in kinds().values() for table in tables(verifier.Settings, "x")
    for key in table.keys
} | {f"{VERIFIERS}.kind"}  # fmt: skip
ENVIRONMENTS = "environments.named"
OF_ENVIRONMENTS = {
    f"{ENVIRONMENTS}.{key.name}" for environment in environments().values()
    for table in tables(environment.Settings, "x") for key in table.keys
} | {f"{ENVIRONMENTS}.kind"}  # fmt: skip


def test_every_setting_has_a_rule_and_every_rule_a_setting() -> None:
    unruled = []
    for setting in OF_RECIPE:
        try:
            rule_of(setting)
        except KeyError:
            unruled.append(setting)
    assert unruled == [], "add them to shared/resuming.py"
    known = OF_RECIPE | {table.name for table in tables(Recipe)} | OF_VERIFIERS | OF_ENVIRONMENTS
    assert sorted(set(RULES) - known) == []
    assert sorted((OF_VERIFIERS | OF_ENVIRONMENTS) - set(RULES)) == []


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("run.model", Rule.SHAPE),
        ("learner.lora.rank", Rule.SHAPE),
        ("run.seed", Rule.IDENTITY),
        ("data.train.0.columns.prompt", Rule.IDENTITY),
        ("data.eval.12.sampling.n", Rule.IDENTITY),
        ("data.eval.0.every", Rule.KNOB),
        ("learner.optimizer.learning_rate", Rule.KNOB),
        ("reward.verifiers.mine.file", Rule.KNOB),
        ("reward.verifiers.mine.judging_seconds", Rule.KNOB),
        ("reward.verifiers.mine.kind", Rule.IDENTITY),
        ("environments.named.mine.address", Rule.KNOB),
        ("environments.named.mine.checks", Rule.IDENTITY),
        ("environments.named.mine.key_of_a_package", Rule.IDENTITY),
        ("reward.verifiers.mine.key_of_a_package", Rule.IDENTITY),
    ],
)
def test_rules_hold_for_settings_as_recipes_write_them(setting: str, rule: Rule) -> None:
    assert rule_of(setting) is rule


def test_a_setting_without_a_rule_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"learner\.brand_new"):
        rule_of("learner.brand_new")


def test_what_the_learner_compares_with_a_checkpoint_follows_from_the_rules() -> None:
    assert settings_of("run", "rollout", "learner") == [
        "run.model",
        "learner.lora",
        "learner.freeze_router",
        "run.task",
        "run.seed",
        "run.groups_per_step",
        "rollout.n",
        "rollout.temperature",
        "learner.algorithm",
    ]
