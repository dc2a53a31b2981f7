"""The stability bench: the same bits for the same seed, placebos that keep gamma's size, and how arms compare."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from routershift.routing.layout import ScoreFunction
from routershift.routing.shift import Routes
from services.cli.commands.bench import REPOSITORY, bench
from services.cli.recipe import Recipe
from services.learner.settings import LearnerSettings
from shared.errors import CorruptDataError, InvalidInputError
from shared.recipes import load
from tests.bench.study import services
from tests.bench.study.cells import CORRECTIONS, OBJECTIVES, Cell, Pressure, arm_of, parse_arm
from tests.bench.study.outcomes import HEADLINE, compared, difference, outcomes
from tests.bench.study.placebos import Placebo
from tests.bench.study.replay import filtered
from tests.bench.study.runs import Protocol, run
from tests.bench.study.variants import expert_log_ratios

MODEL = REPOSITORY / "deploy" / "recipes" / "countdown" / "model"
TINY = Protocol(model=MODEL, steps=3, groups=2, samples=8, max_tokens=16, prompts=16, held_out=8, every=2)
PRESSED = Pressure(6e-4, 2, 2)


def cell(arm: str, staleness: int = 1) -> Cell:
    objective, _, correction = arm.partition("+")
    return Cell(objective, correction, staleness, PRESSED)


@pytest.fixture(scope="module")
def permuted() -> dict[str, Any]:
    return run(cell("grpo+permuted"), 3, TINY)


def test_a_run_is_the_same_bit_by_bit(permuted: dict[str, Any]) -> None:
    assert run(cell("grpo+permuted"), 3, TINY) == permuted


def test_tokens_are_as_old_as_the_cell_says(permuted: dict[str, Any]) -> None:
    assert [batch["token_lag_mean"] for batch in permuted["batches"]] == [0, 1, 1]
    batches = run(cell("grpo+permuted", staleness=0), 3, TINY)["batches"]
    assert [batch["token_lag_mean"] for batch in batches] == [0, 0, 0]


def test_arms_begin_alike_and_part(permuted: dict[str, Any]) -> None:
    """Their first batch is of the same groups; then each has weights of its own."""
    ends = {permuted["weights"]}
    for arm in ("grpo+none", "grpo+shift", "grpo+mean", "grpo+frozen", "gmpo+r3", "grpo+tis", "dppo+icepop"):
        found = run(cell(arm), 3, TINY)
        assert found["evaluations"][0] == permuted["evaluations"][0]
        assert found["batches"][0]["reward"] == permuted["batches"][0]["reward"]
        assert 0 < found["batches"][2]["gamma_mean"] < 1
        ends.add(found["weights"])
    assert len(ends) == 8


def test_gamma_that_is_only_measured_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = run(cell("grpo+none"), 3, TINY)
    arm = CORRECTIONS["none"]
    monkeypatch.setitem(CORRECTIONS, "none", type(arm)({"enabled": False}, arm.learner))
    assert run(cell("grpo+none"), 3, TINY)["weights"] == measured["weights"]


@pytest.fixture(scope="module")
def shifted() -> dict[str, Any]:
    return run(cell("grpo+shift"), 3, TINY)


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_arm_is_a_setting_that_the_learner_takes(objective: str, correction: str) -> None:
    LearnerSettings.model_validate(cell(f"{objective}+{correction}").learner)


@pytest.mark.parametrize(
    "correction", ["product@0.2", "after_clip", "bf16_baseline", "r3_threshold", "r3_weights", "expert_ratio"]
)
def test_ablations_are_trained_with(correction: str, shifted: dict[str, Any]) -> None:
    found = run(cell(f"grpo+{correction}"), 3, TINY)
    assert found["weights"] != shifted["weights"]
    assert 0 < found["batches"][2]["gamma_mean"] < 1


def test_variants_of_gamma_are_nothing_where_gamma_is_one() -> None:
    ends = {run(cell(f"grpo+{name}"), 3, TINY)["weights"] for name in ("none", "gradient@1", "by_layer@1")}
    assert len(ends) == 1


def test_without_a_bound_each_layers_own_gamma_is_gamma_and_its_gradient_matters() -> None:
    shift, by_layer, gradient = (
        run(cell(f"grpo+{name}@1e-06"), 3, TINY)["batches"][0] for name in ("shift", "by_layer", "gradient")
    )
    assert by_layer == pytest.approx(shift, rel=1e-2)
    assert gradient["grad_norm"] != pytest.approx(shift["grad_norm"], rel=1e-2)


def test_the_ratio_of_an_expert_is_the_mean_of_its_tokens_in_a_response() -> None:
    """Tokens 0 and 1 of response 0 share expert 5 in layer 0; token 2 is another response's; 3 has no route."""
    ids = torch.tensor([[[5, 1], [0, 1]], [[5, 2], [2, 3]], [[5, 1], [0, 1]], [[5, 1], [0, 1]]], dtype=torch.uint8)
    missing = torch.tensor([False, False, False, True])
    routes = Routes(torch.arange(4), ids, torch.zeros(4, 2, 2), missing, torch.zeros(4, dtype=torch.bool))
    ratios = torch.tensor([1.0, 3.0, 7.0, 9.0], requires_grad=True)
    found = expert_log_ratios(ratios, torch.tensor([0, 0, 1, 1]), routes)
    # Layer 0: expert 5 has (1 + 3) / 2, the other one is the token's own; layer 1: all are its own.
    torch.testing.assert_close(found, torch.tensor([(1.5 + 1) / 2, (2.5 + 3) / 2, 7.0, 9.0]))
    (gradient,) = torch.autograd.grad(found[0], ratios)
    torch.testing.assert_close(gradient, torch.tensor([0.875, 0.125, 0.0, 0.0]))


def test_a_replayed_expert_stays_where_the_live_score_is_near_its_own_choice() -> None:
    logits = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()

    def kept(*replayed: int, ratio: float) -> list[int]:
        (found,) = filtered(logits, torch.tensor([replayed]), ratio, ScoreFunction.SOFTMAX).tolist()
        return list(found)

    assert kept(2, 1, ratio=0.5) == [2, 1]  # 0.2 is above half of 0.3, the weaker one of its own two
    assert kept(3, 1, ratio=0.5) == [1, 0]
    assert kept(3, 2, ratio=0.5) == [2, 0]
    assert kept(3, 2, ratio=0.9) == [0, 1]
    assert kept(3, 2, ratio=1e-3) == [3, 2]


def test_a_replay_without_a_threshold_is_that_of_r3(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(cell("grpo+r3"), 3, TINY)
    monkeypatch.setitem(CORRECTIONS, "r3", replace(CORRECTIONS["r3"], replay_above=1e-30))
    for batch, expected in zip(run(cell("grpo+r3"), 3, TINY)["batches"], plain["batches"], strict=True):
        assert batch == pytest.approx(expected, rel=1e-2, abs=1e-4)


def test_another_bound_is_another_cell_and_the_default_is_none() -> None:
    assert parse_arm("grpo+shift@0.8") == parse_arm("grpo+shift") == ("grpo", "shift")
    assert parse_arm("gmpo+permuted@0.50") == ("gmpo", "permuted@0.5")
    assert cell("gmpo+mean@0.2").learner["router_shift"] == {"enabled": True, "gamma_min": 0.2}
    assert arm_of("permuted@0.5").placebo is Placebo.PERMUTED
    assert LearnerSettings.model_validate(cell("grpo+shift@0.5").learner).router_shift.gamma_min == 0.5


@pytest.mark.parametrize(
    ("arm", "why"),
    [
        ("grpo", "is no arm"),
        ("ppo+shift", "is no arm"),
        ("grpo+shrink@0.5", "is no arm"),
        ("grpo+none@0.5", "none does not weigh by it"),
        ("grpo+shift@0", "above 0 and at most 1"),
        ("grpo+shift@much", "above 0 and at most 1"),
        ("cispo+gradient", "cispo has no gradient through its ratio"),
    ],
)
def test_arms_that_mean_nothing_are_refused(arm: str, why: str) -> None:
    with pytest.raises(InvalidInputError, match=why):
        parse_arm(arm)


def test_what_is_compared() -> None:
    assert compared([arm for pair in HEADLINE for arm in pair]) == [
        *HEADLINE,
        ("grpo+permuted", "grpo+none"),
        ("grpo+mean", "grpo+none"),
        ("gmpo+permuted", "gmpo+none"),
        ("gmpo+mean", "gmpo+none"),
    ]
    lower = ["grpo+none", "grpo+shift", "grpo+shift@0.5", "grpo+permuted@0.5", "grpo+gradient@0.5"]
    assert set(compared(lower)) == {
        ("grpo+shift", "grpo+none"),
        ("grpo+shift@0.5", "grpo+permuted@0.5"),
        ("grpo+shift@0.5", "grpo+none"),
        ("grpo+permuted@0.5", "grpo+none"),
        ("grpo+gradient@0.5", "grpo+shift@0.5"),
        ("grpo+gradient@0.5", "grpo+permuted@0.5"),
        ("grpo+gradient@0.5", "grpo+none"),
    }
    assert set(compared(["gmpo+bf16", "gmpo+bf16_shift", "gmpo+bf16_baseline"])) == {
        ("gmpo+bf16_shift", "gmpo+bf16"),
        ("gmpo+bf16_baseline", "gmpo+bf16"),
        ("gmpo+bf16_baseline", "gmpo+bf16_shift"),
    }


def test_placebos_keep_the_size_of_gamma_and_not_its_places() -> None:
    log_gamma = torch.linspace(-0.2, 0.0, 50)
    permute = Placebo.PERMUTED.weigh(0)
    first, second = permute(log_gamma), permute(log_gamma)
    for found in (first, second):
        assert torch.equal(found.sort().values, log_gamma)
        assert not torch.equal(found, log_gamma)
    assert not torch.equal(first, second)
    assert torch.equal(Placebo.PERMUTED.weigh(0)(log_gamma), first)
    mean = Placebo.MEAN.weigh(0)(log_gamma)
    torch.testing.assert_close(mean.exp(), torch.full((50,), float(log_gamma.exp().mean())))


def test_differences_are_paired_and_have_an_interval() -> None:
    """A difference that is the same in every seed is certain, however much seeds differ."""
    than = dict(enumerate((0.1, 0.9, 0.4, 0.6)))
    same = difference({seed: value + 0.05 for seed, value in than.items()}, than)
    assert same is not None
    assert (same.mean, same.low, same.high) == pytest.approx((0.05, 0.05, 0.05))
    other = difference({0: 0.3, 1: 0.8, 2: 0.5, 9: 1.0}, than)
    assert other is not None
    assert other.seeds == pytest.approx({0: 0.2, 1: -0.1, 2: 0.1})
    # One of 27 draws of three seeds is the worst one three times: 3.7 %, which is more than 2.5 %.
    assert (other.low, other.high) == pytest.approx((-0.1, 0.2))
    # With eight seeds it is near the normal one: 1.96 standard errors to either side.
    values = np.random.default_rng(1).normal(size=8)
    eight = difference(dict(enumerate(map(float, values))), dict.fromkeys(range(8), 0.0))
    assert eight is not None
    half = 1.96 * values.std() / 8**0.5
    assert (eight.low, eight.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.2 * half)
    assert difference({0: 1.0}, than) is None


def test_outcomes_are_those_of_the_protocol() -> None:
    def at(step: int, accuracy: float) -> dict[str, float]:
        return {"step": step, "pass_at_1": accuracy, "pass_at_4": 0.5, "greedy": 0.4}

    batches = [{"clip_fraction": share, "grad_norm": np.e, "ratio_max": 1.0} for share in (0.1, 0.1, 0.2, 0.31)]
    found = outcomes([at(0, 0.3), at(10, 0.4), at(20, 0.14), at(30, 0.1)], batches)
    assert (found["final"], found["best"], found["collapsed_at"], found["clip_bursts"]) == (0.1, 0.4, 20, 0)
    assert found["log_grad_norm_std"] == pytest.approx(0)
    assert found["gamma_mean"] is None
    assert outcomes([at(0, 0.3), at(10, 0.1), at(20, 0.16)], batches)["collapsed_at"] is None
    batches.append({"clip_fraction": 0.7, "grad_norm": 1.0, "ratio_max": 1.0})
    assert outcomes([at(0, 0.3)], batches)["clip_bursts"] == 1


def test_a_study_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = tmp_path / "runs.jsonl"
    options = [
        *("--json", "--arms", "grpo+none,grpo+shift", "--steps", "1", "--groups", "2", "--held-out", "4"),
        *("--processes", "1", "--runs", str(runs), "--seeds"),
    ]
    bench("stability", [*options, "1"])
    (first,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    kept = runs.read_text().splitlines()
    with runs.open("a") as file:
        file.write(kept[0][:40])  # as of a process that was killed while it wrote
    bench("stability", [*options, "2"])
    printed = capsys.readouterr()
    assert "4 runs, 2 of them there already" in printed.err
    result = json.loads(printed.out)
    assert [json.loads(line)["seed"] for line in runs.read_text().splitlines()] == [0, 0, 1, 1]
    (condition,) = result["conditions"].values()
    assert condition["arms"]["grpo+shift"].keys() == {"0", "1"}
    assert condition["arms"]["grpo+shift"]["0"] == next(iter(first["conditions"].values()))["arms"]["grpo+shift"]["0"]
    assert condition["differences"]["grpo+shift - grpo+none"]["final"]["seeds"].keys() == {"0", "1"}
    runs.write_text(f"nonsense\n{kept[0]}\n")
    with pytest.raises(CorruptDataError, match="line 1 is no run"):
        bench("stability", [*options, "1"])


def test_an_entropy_bonus_makes_another_run_and_none_keeps_the_key_of_older_ones(shifted: dict[str, Any]) -> None:
    assert "entropy_coefficient" not in TINY.as_json()
    bonus = replace(TINY, entropy_coefficient=0.1)
    assert bonus.as_json() == {**TINY.as_json(), "entropy_coefficient": 0.1}
    assert run(cell("grpo+shift"), 3, bonus)["weights"] != shifted["weights"]


def test_through_all_services_a_cell_is_settings_of_the_run() -> None:
    """Its learner is the one of the run in one process, but for what the recipe keeps on disk."""
    made, protocol = cell("gmpo+shift@0.5", staleness=3), replace(TINY, entropy_coefficient=0.1)
    flags = [f"{name}={value}" for name, value in services.settings(made, 5, protocol).items()]
    found = load(Recipe, services.RECIPE, {}, flags)
    alone = LearnerSettings.model_validate(protocol.learner(made))
    assert alone.entropy_coefficient == 0.1
    assert found.learner.model_copy(update={"checkpoints": alone.checkpoints}) == alone
    assert (found.run.seed, found.run.steps, found.run.groups_per_step, found.run.max_staleness) == (5, 3, 2, 3)
    assert (found.rollout.n, found.curriculum.evaluation.problems, found.run.evaluate_every) == (8, 8, 2)


@pytest.mark.parametrize("arm", ["grpo+permuted", "grpo+expert_ratio", "grpo+r3_threshold", "gmpo+bf16_shift"])
def test_an_arm_that_no_service_has_is_refused_before_any_run(arm: str) -> None:
    with pytest.raises(InvalidInputError, match=r"is no arm of the services.*take a correction of none, shift, tis"):
        bench("stability", ["--services", "--arms", f"grpo+none,{arm}"])


def test_numbers_that_make_no_run_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="--steps is 0"):
        bench("stability", ["--steps", "0"])
