"""The trainer: its updates against loops, what it refuses, what it skips, and what it writes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from services.learner.data.batch import Group, Sample
from services.learner.settings import LearnerSettings
from services.learner.trainer import NON_FINITE, Trainer
from shared.errors import CorruptDataError, InvalidInputError, PreconditionError
from shared.settings import RunSettings
from shared.trajectory import Completion, RouterLayout, RouterTrace, ScoreFunction, VersionSpan
from tests.support.models import EOS, EXPERTS, MAX_MODEL_LEN, TOP_K, VOCABULARY, save_model
from tests.support.rollouts import layout, load, perturbed, random_groups

# Updates small enough to compare gradients, and no clipping of their norm.
PLAIN: dict[str, Any] = {"learning_rate": 1e-12, "max_grad_norm": 1e9}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def stale(folder: Path) -> list[Group]:
    """Sampled by other weights, as version 0."""
    return random_groups(perturbed(load(folder), 0.005), groups=4, samples=4)


@pytest.fixture(scope="module")
def fresh(folder: Path) -> list[Group]:
    return random_groups(load(folder), groups=4, samples=4)


def make(folder: Path, seed: int = 0, temperature: float = 1.0, **settings: Any) -> Trainer:
    return Trainer(LearnerSettings(**settings), RunSettings(model=folder, seed=seed, temperature=temperature))


def weights(trainer: Trainer, folder: Path) -> dict[str, torch.Tensor]:
    folder.mkdir(parents=True, exist_ok=True)
    trainer.export_weights(folder)
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    """Of the last update."""
    found = {name: p.grad for name, p in trainer._parameters.items()}
    return {name: grad for name, grad in found.items() if grad is not None}


def reference_loss(model: PreTrainedModel, groups: Sequence[Group], gamma_min: float | None) -> torch.Tensor:
    """Of GMPO, or of RSPO with a gamma_min: one response at a time, from full logits."""
    losses = []
    for group in groups:
        rewards = np.array([sample.reward for sample in group.samples])
        for sample, advantage in zip(group.samples, (rewards - rewards.mean()) / rewards.std(), strict=True):
            tokens = torch.tensor(sample.completion.token_ids, dtype=torch.int64)
            ids = torch.cat((torch.tensor(sample.prompt_ids, dtype=torch.int64), tokens))[None]
            output = model(ids, output_router_logits=True)
            at = slice(sample.prompt_ids.size - 1, -1)
            logprobs = output.logits[0, at].log_softmax(-1).gather(1, tokens[:, None])[:, 0]
            log_w = logprobs - torch.tensor(sample.completion.logprobs)
            trace = sample.completion.router_trace
            if gamma_min is not None and trace is not None:
                distances = [
                    (logits.detach()[at].log_softmax(-1).gather(1, torch.tensor(trace.expert_ids[:, i].astype(int)))
                     - torch.tensor(trace.scores[:, i]).float()).abs().mean(-1)
                    for i, logits in enumerate(output.router_logits)
                ]  # fmt: skip
                gamma = torch.exp(-torch.stack(distances).mean(0))
                log_w = log_w + gamma.clamp(min=gamma_min).log()
            sign = math.copysign(1.0, advantage)
            clipped = torch.minimum(sign * log_w, (sign * log_w).clamp(-0.4, 0.4))
            losses.append(-torch.exp(sign * clipped.mean()) * advantage)
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("algorithm", "gamma_min"), [("gmpo", None), ("rspo", 0.8), ("rspo", 0.95)])
def test_loss_and_gradient_of_a_step_equal_the_definition(
    folder: Path, stale: list[Group], algorithm: str, gamma_min: float | None
) -> None:
    trainer = make(folder, algorithm=algorithm, gamma_min=gamma_min or 0.8, **PLAIN)
    report = trainer.train_step(stale)
    model = load(folder)
    expected = reference_loss(model, stale, gamma_min)
    torch.autograd.backward(expected)
    assert report.diagnostics["loss"] == pytest.approx(expected.item(), abs=1e-6)
    for name, gradient in gradients(trainer).items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=2e-6, msg=name)


@pytest.mark.parametrize("changes", [{"micro_batch_tokens": 1}, {"micro_batch_tokens": 100}])
def test_a_batch_is_the_same_however_it_is_cut(folder: Path, stale: list[Group], changes: dict[str, int]) -> None:
    whole, cut = make(folder, **PLAIN), make(folder, **PLAIN, **changes)
    reports = [trainer.train_step(stale) for trainer in (whole, cut)]
    assert reports[0].diagnostics == pytest.approx(dict(reports[1].diagnostics), rel=1e-5, abs=1e-6)
    assert reports[0].diagnostics["loss"] == pytest.approx(reports[1].diagnostics["loss"], abs=1e-6)
    for name, gradient in gradients(cut).items():
        torch.testing.assert_close(gradient, gradients(whole)[name], rtol=1e-5, atol=1e-6)


def test_activation_checkpointing_changes_memory_and_nothing_else(folder: Path, stale: list[Group]) -> None:
    plain, recomputed = make(folder, **PLAIN), make(folder, activation_checkpointing=True, **PLAIN)
    reports = [trainer.train_step(stale) for trainer in (plain, recomputed)]
    assert reports[0].diagnostics == pytest.approx(dict(reports[1].diagnostics), abs=1e-6)
    for name, gradient in gradients(recomputed).items():
        torch.testing.assert_close(gradient, gradients(plain)[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("algorithm", ["rspo", "gmpo", "grpo"])
def test_learning_makes_rewarded_responses_likelier(folder: Path, fresh: list[Group], algorithm: str) -> None:
    trainer = make(folder, algorithm=algorithm, learning_rate=1e-4)
    losses = [trainer.train_step(fresh).diagnostics["loss"] for _ in range(3)]
    assert losses[0] > losses[1] > losses[2]
    assert trainer.step == 3


def test_diagnostics_on_the_weights_that_sampled(folder: Path, fresh: list[Group]) -> None:
    found = make(folder, **PLAIN).train_step(fresh).diagnostics
    tokens = sum(sample.completion.token_ids.size for group in fresh for sample in group.samples)
    assert found["tokens"] == tokens
    assert found["ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["clip_fraction"] == 0
    assert found["gamma_at_lag_zero"] == pytest.approx(1, abs=1e-3)
    assert found["gamma_mean"] == found["gamma_at_lag_zero"]
    assert found["gamma_floor_fraction"] == 0
    assert found["token_lag_mean"] == 0
    assert 0 < found["entropy"] < math.log(VOCABULARY)


def test_diagnostics_of_stale_rollouts(folder: Path, stale: list[Group]) -> None:
    trainer = make(folder, **PLAIN, gamma_min=0.85)
    trainer.train_step(stale)
    found = trainer.train_step(stale).diagnostics
    assert found["token_lag_mean"] == found["token_lag_max"] == 1
    assert "gamma_at_lag_zero" not in found
    assert found["kl"] > 0
    assert 0 < found["gamma_p10"] < found["gamma_mean"] < 1
    assert 0 < found["gamma_floor_fraction"] < 1
    layers = [found[f"router_shift_layer_{i}"] for i in range(3)]
    assert all(0 < layer < 1 for layer in layers)


def test_gamma_at_lag_zero_is_taken_before_the_weights_move(folder: Path, fresh: list[Group]) -> None:
    """From the first of two updates only: at this learning rate the second sees other routers."""
    found = make(folder, learning_rate=1e-2, minibatches=2).train_step(fresh).diagnostics
    assert found["gamma_at_lag_zero"] == pytest.approx(1, abs=1e-3)
    assert found["gamma_mean"] < 0.99


def test_tokens_of_one_response_may_come_from_different_versions(folder: Path, fresh: list[Group]) -> None:
    trainer = make(folder, **PLAIN)
    trainer.train_step(fresh)
    groups = [
        with_completion(group, lambda c: replace(c, versions=split(c, (0, 1)))) if i == 0 else group
        for i, group in enumerate(fresh)
    ]
    found = trainer.train_step(groups).diagnostics
    assert 0 < found["token_lag_mean"] < 1
    assert found["gamma_at_lag_zero"] == pytest.approx(1, abs=1e-3)


def test_temperature_is_that_of_the_rollouts(folder: Path) -> None:
    """Recorded at temperature 2; the learner's log-probs agree with it at 2 and not at 1."""
    groups = random_groups(load(folder), groups=2, samples=3)
    model = load(folder)

    def at_two(sample: Sample) -> Sample:
        tokens = torch.tensor(sample.completion.token_ids, dtype=torch.int64)
        ids = torch.cat((torch.tensor(sample.prompt_ids, dtype=torch.int64), tokens))[None]
        with torch.no_grad():
            logits = model(ids).logits[0, sample.prompt_ids.size - 1 : -1]
        logprobs = (logits / 2).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        return replace(sample, completion=replace(sample.completion, logprobs=logprobs.numpy()))

    groups = [replace(group, samples=tuple(at_two(s) for s in group.samples)) for group in groups]
    assert make(folder, temperature=2.0, **PLAIN).train_step(groups).diagnostics["kl"] == pytest.approx(0, abs=1e-6)
    assert make(folder, **PLAIN).train_step(groups).diagnostics["kl"] > 0.01


def test_warm_up_raises_the_learning_rate_step_by_step(folder: Path, fresh: list[Group], tmp_path: Path) -> None:
    """AdamW's first update moves each weight by the learning rate."""
    slow, fast = make(folder, learning_rate=1e-3, warmup_steps=9), make(folder, learning_rate=1e-3)
    before = weights(slow, tmp_path / "before")
    moved: list[float] = []
    for trainer in (slow, fast):
        trainer.train_step(fresh)
        after = weights(trainer, tmp_path / str(len(moved)))
        moved.append(max(float((after[name] - before[name]).abs().max()) for name in before))
    assert moved == pytest.approx([1e-4, 1e-3], rel=0.01)


def test_epochs_and_minibatches_multiply_updates_and_stay_one_step(folder: Path, fresh: list[Group]) -> None:
    trainer = make(folder, epochs=3, minibatches=2, **PLAIN)
    trainer.train_step(fresh)
    updates = {int(state["step"]) for state in trainer._optimizer.state.values()}
    assert updates == {6}
    assert trainer.step == 1


def test_a_batch_that_is_not_finite_is_skipped_and_changes_nothing(
    folder: Path, fresh: list[Group], tmp_path: Path
) -> None:
    trainer = make(folder, learning_rate=1e-3)
    trainer.train_step(fresh)
    bad = poisoned(trainer, fresh[0])
    before = weights(trainer, tmp_path / "before")
    report = trainer.train_step([bad])
    after = weights(trainer, tmp_path / "after")
    assert report.skipped == NON_FINITE
    assert not math.isfinite(report.diagnostics["loss"])
    assert report.step == trainer.step == 1
    assert all(torch.equal(after[name].nan_to_num(), before[name].nan_to_num()) for name in before)
    assert trainer.train_step(fresh).skipped is None
    assert trainer.step == 2


def test_one_minibatch_that_is_not_finite_costs_its_own_update_only(folder: Path, fresh: list[Group]) -> None:
    trainer = make(folder, learning_rate=1e-3, minibatches=4)
    report = trainer.train_step([poisoned(trainer, fresh[0]), *fresh[1:]])
    assert report.skipped is None
    assert trainer.step == 1
    assert {int(state["step"]) for state in trainer._optimizer.state.values()} == {3}


def test_router_shift_needs_routers_and_gmpo_does_not(tmp_path: Path) -> None:
    dense = save_model(tmp_path, "qwen3_dense")
    with pytest.raises(PreconditionError, match="'qwen3' is dense or unknown"):
        make(dense)
    trainer = make(dense, algorithm="gmpo", learning_rate=1e-4)
    assert trainer.layout is None
    groups = random_groups(load(dense), groups=2, samples=3)
    for group in groups:
        trainer.check(group)
    assert "gamma_mean" not in trainer.train_step(groups).diagnostics


def with_completion(group: Group, change: Callable[[Completion], Completion]) -> Group:
    """The group with its second sample's completion changed."""
    samples = list(group.samples)
    samples[1] = replace(samples[1], completion=change(samples[1].completion))
    return replace(group, samples=tuple(samples))


def with_trace(group: Group, **changes: Any) -> Group:
    def change(completion: Completion) -> Completion:
        assert completion.router_trace is not None
        return replace(completion, router_trace=replace(completion.router_trace, **changes))

    return with_completion(group, change)


def split(completion: Completion, versions: tuple[int, int]) -> tuple[VersionSpan, ...]:
    """The first token from one version, the others from another."""
    tokens = completion.token_ids.size
    return (VersionSpan(versions[0], 1), VersionSpan(versions[1], tokens - 1)) if tokens > 1 else completion.versions


def poisoned(trainer: Trainer, group: Group) -> Group:
    """The group with a token, used nowhere else, that the damaged embedding of the model makes not a number of."""
    with torch.no_grad():
        trainer._policy.model.get_input_embeddings().weight[EOS] = math.nan
    samples = tuple(replace(sample, prompt_ids=np.array([EOS], dtype=np.int32)) for sample in group.samples)
    return replace(group, samples=samples)


def filled(array: np.ndarray[Any, Any], value: float) -> np.ndarray[Any, Any]:
    copy = array.copy()
    copy.flat[-1] = value
    return copy


FAULTS: dict[str, tuple[Callable[[Group], Group], type[Exception], str]] = {
    "token out of the vocabulary": (
        lambda g: with_completion(g, lambda c: replace(c, token_ids=filled(c.token_ids, VOCABULARY))),
        InvalidInputError,
        f"token_ids spans .* {VOCABULARY}; the model has tokens 0 to {VOCABULARY - 1}",
    ),
    "negative prompt token": (
        lambda g: replace(g, samples=(replace(g.samples[0], prompt_ids=np.array([-1], np.int32)),)),
        InvalidInputError,
        "prompt_ids spans -1",
    ),
    "empty response": (
        lambda g: with_completion(g, lambda c: replace(c, token_ids=c.token_ids[:0])),
        InvalidInputError,
        "is empty",
    ),
    "longer than the model": (
        lambda g: replace(g, samples=(replace(g.samples[0], prompt_ids=np.ones(MAX_MODEL_LEN, np.int32)),)),
        InvalidInputError,
        f"the model takes {MAX_MODEL_LEN}",
    ),
    "a log-prob too many": (
        lambda g: with_completion(g, lambda c: replace(c, logprobs=np.append(c.logprobs, np.float32(0)))),
        CorruptDataError,
        "logprobs",
    ),
    "versions that do not cover": (
        lambda g: with_completion(g, lambda c: replace(c, versions=())),
        CorruptDataError,
        "versions.*: 0",
    ),
    "log-prob not finite": (
        lambda g: with_completion(g, lambda c: replace(c, logprobs=filled(c.logprobs, math.nan))),
        CorruptDataError,
        "not finite",
    ),
    "reward not finite": (
        lambda g: replace(g, samples=(replace(g.samples[0], reward=math.inf),)),
        CorruptDataError,
        "not finite",
    ),
    "no trace": (
        lambda g: with_completion(g, lambda c: replace(c, router_trace=None)),
        InvalidInputError,
        "router_trace is absent",
    ),
    "trace of another model": (
        lambda g: with_trace(g, layout=RouterLayout((0, 1), EXPERTS, TOP_K, ScoreFunction.SOFTMAX)),
        InvalidInputError,
        r"layer_ids is \(0, 1\), the model here has \(0, 1, 2\)",
    ),
    "trace of another length": (
        lambda g: with_trace(g, expert_ids=np.zeros((99, 3, 2), np.uint8)),
        CorruptDataError,
        r"\(99, 3, 2\)",
    ),
    "score not finite": (
        lambda g: with_trace(g, log_scores=filled(trace_of(g).scores, -math.inf)),
        CorruptDataError,
        "log_scores is not finite",
    ),
    "expert out of range": (
        lambda g: with_trace(g, expert_ids=filled(trace_of(g).expert_ids, EXPERTS)),
        CorruptDataError,
        f"holds {EXPERTS}; the model has {EXPERTS} experts",
    ),
}


def trace_of(group: Group) -> RouterTrace:
    trace = group.samples[1].completion.router_trace
    assert trace is not None
    return trace


@pytest.fixture(scope="module")
def checker(folder: Path) -> Trainer:
    return make(folder)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_group_that_cannot_be_trained_on_is_refused_by_name(checker: Trainer, fresh: list[Group], fault: str) -> None:
    assert checker.layout == layout()
    checker.check(fresh[0])
    spoil, error, named = FAULTS[fault]
    with pytest.raises(error, match=rf"^group group-0, sample \d: .*{named}"):
        checker.check(spoil(fresh[0]))


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen3_moe_dense_first", "qwen3_dense", "qwen2_moe", "mixtral", "olmoe"])
def test_exported_weights_have_the_names_of_the_model_folder(tmp_path: Path, kind: str) -> None:
    """And, untrained, its values; loaded by transformers they are the model."""
    folder = save_model(tmp_path / "model", kind)
    exported = weights(make(folder, algorithm="gmpo"), tmp_path / "out")
    original = load_file(folder / "model.safetensors")
    assert exported.keys() == original.keys()
    for name, tensor in original.items():
        torch.testing.assert_close(exported[name], tensor, rtol=0, atol=0)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(load(tmp_path / "out")(ids).logits, load(folder)(ids).logits)


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen3_dense", "deepseek_v3"])
@pytest.mark.parametrize("lora_rank", [0, 4])
def test_exported_weights_have_the_dtype_of_the_model_folder(tmp_path: Path, kind: str, lora_rank: int) -> None:
    """The dense model ties its embeddings, so a cast must not write them twice; a correction bias stays float32."""
    save_model(tmp_path / "float32", kind)
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16)
    half.save_pretrained(tmp_path / "bfloat16")
    exported = weights(make(tmp_path / "bfloat16", algorithm="gmpo", lora={"rank": lora_rank}), tmp_path / "out")
    original = load_file(tmp_path / "bfloat16" / "model.safetensors")
    assert exported.keys() == original.keys()
    assert exported["model.embed_tokens.weight"].dtype == torch.bfloat16
    assert {name: t.dtype for name, t in exported.items()} == {name: t.dtype for name, t in original.items()}
    assert all(torch.equal(exported[name], original[name]) for name in original)


def test_a_resumed_trainer_goes_on_bit_for_bit(folder: Path, stale: list[Group], tmp_path: Path) -> None:
    settings: dict[str, Any] = {"learning_rate": 1e-3, "epochs": 2, "minibatches": 2, "warmup_steps": 3}
    straight = make(folder, **settings)
    for _ in range(2):
        straight.train_step(stale)
    straight.save(tmp_path, {"groups": ["a", "b"]})
    expected = [dict(straight.train_step(stale).diagnostics) for _ in range(2)]

    resumed = make(folder, **settings)
    resumed.train_step(stale)  # what it held before must not matter
    assert resumed.load(tmp_path) == {"groups": ["a", "b"]}
    assert resumed.step == 2
    assert [dict(resumed.train_step(stale).diagnostics) for _ in range(2)] == expected
    ours, theirs = weights(resumed, tmp_path / "ours"), weights(straight, tmp_path / "theirs")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_checkpoint_before_the_first_step_is_a_start(folder: Path, stale: list[Group], tmp_path: Path) -> None:
    fresh = make(folder, learning_rate=1e-3)
    fresh.save(tmp_path, {})
    expected = dict(fresh.train_step(stale).diagnostics)
    used = make(folder, learning_rate=1e-3)
    used.train_step(stale)
    used.load(tmp_path)
    assert used.step == 0
    assert dict(used.train_step(stale).diagnostics) == expected


def test_a_checkpoint_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    other = make(save_model(tmp_path / "other", num_experts=4, num_experts_per_tok=2))
    saved = tmp_path / "saved"
    saved.mkdir()
    other.save(saved, {})
    with pytest.raises(InvalidInputError, match="of another model"):
        make(folder).load(saved)


def test_a_checkpoint_holds_no_pickle(folder: Path, stale: list[Group], tmp_path: Path) -> None:
    trainer = make(folder, learning_rate=1e-3)
    trainer.train_step(stale)
    trainer.save(tmp_path, {})
    assert {path.suffix for path in tmp_path.iterdir()} == {".safetensors", ".json"}


def test_noise_of_the_training_forward_is_off(tmp_path: Path) -> None:
    """Dropout in a model's config would look like policy shift."""
    folder = save_model(tmp_path, attention_dropout=0.5)
    groups = random_groups(load(folder), groups=2, samples=3)
    assert make(folder, **PLAIN).train_step(groups).diagnostics["kl"] == pytest.approx(0, abs=1e-6)


def test_equal_seeds_train_equally_and_others_shuffle_otherwise(
    folder: Path, stale: list[Group], tmp_path: Path
) -> None:
    trained = []
    for i, seed in enumerate((1, 1, 2)):
        trainer = make(folder, seed=seed, learning_rate=1e-3, minibatches=2)
        trainer.train_step(stale)
        trained.append(weights(trainer, tmp_path / str(i)))
    first, same, other = trained
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_the_export_can_be_read_back_as_a_start(folder: Path, stale: list[Group], tmp_path: Path) -> None:
    """A trained export in place of the folder's weights gives the trained policy."""
    trainer = make(folder, learning_rate=1e-3)
    trainer.train_step(stale)
    exported = weights(trainer, tmp_path / "out")
    save_file(exported, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    groups = random_groups(load(tmp_path / "out"), groups=2, samples=3, version=1)
    found = trainer.train_step(groups).diagnostics
    assert found["kl"] == pytest.approx(0, abs=1e-6)
    assert found["gamma_at_lag_zero"] == pytest.approx(1, abs=1e-3)
