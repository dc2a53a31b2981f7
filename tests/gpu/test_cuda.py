"""The learner and the torch engine on a GPU against the same code on the CPU. Skipped where there is no GPU."""

import asyncio
from collections.abc import Callable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from services.generation.engines.base import EngineOptions, EngineSampling
from services.generation.engines.torch.engine import TorchEngine
from services.learner.data.batch import Group
from services.learner.model.optimizer import AdamW
from services.learner.model.settings import OptimizerSettings
from services.learner.monitoring.report import StepReport
from services.learner.settings import LearnerSettings
from services.learner.trainer import Trainer
from shared.settings import RolloutSettings, RunSettings
from tests.support.engines import publish
from tests.support.models import MOE_KINDS, save_model
from tests.support.reference import Reference, check
from tests.support.rollouts import load, perturbed, random_groups
from tests.support.training import save

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: run tests/gpu/run.sh on one")

SAMPLING = EngineSampling(n=2, temperature=1.0, top_p=1.0, top_k=0, max_tokens=24, seed=1)


@pytest.fixture(autouse=True)
def full_precision() -> None:
    """Float32 products in float32: what is compared differs by rounding alone."""
    torch.set_float32_matmul_precision("highest")


def steps(folder: Path, out: Path, groups: list[Group], **settings: Any) -> tuple[list[StepReport], dict[str, Any]]:
    trainer = Trainer(LearnerSettings.model_validate(settings), RunSettings(model=folder), RolloutSettings())
    reports = [trainer.train_step(groups, kept=range(len(groups))) for _ in range(3)]
    out.mkdir()
    trainer.export_weights(out)
    weights: dict[str, Any] = load_file(out / "model.safetensors")
    return reports, weights


@pytest.mark.parametrize("kind", MOE_KINDS)
@pytest.mark.parametrize("replay", ["none", "r3"])
def test_training_steps_equal_those_of_the_cpu(tmp_path: Path, kind: str, replay: str) -> None:
    folder = save_model(tmp_path / "model", kind)
    groups = random_groups(perturbed(load(folder), 0.005), groups=4, samples=4)
    common = {"algorithm": "rspo", "routing_replay": replay}
    expected, cpu = steps(folder, tmp_path / "expected", groups, device="cpu", **common)
    found, cuda = steps(folder, tmp_path / "found", groups, device="cuda", **common)
    for here, there in zip(found, expected, strict=True):
        assert here.skipped is None
        for key in ("loss", "grad_norm", "gamma_mean", "ratio_max", "entropy"):
            assert here.diagnostics[key] == pytest.approx(there.diagnostics[key], rel=1e-3, abs=1e-5), key
        assert here.kept.keys() == there.kept.keys() != set()
        for place, tokens in here.kept.items():
            for ours, theirs in zip(astuple(tokens), astuple(there.kept[place]), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-2, atol=1e-3)
    for name, tensor in cpu.items():
        torch.testing.assert_close(cuda[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_gamma_is_one_without_lag(tmp_path: Path, precision: str) -> None:
    """In bfloat16 the learner's routers differ from the float32 sampler's by rounding: gamma stays near 1."""
    folder = save_model(tmp_path / "model")
    groups = random_groups(load(folder), groups=4, samples=4)
    (report, *_), _ = steps(
        folder, tmp_path / "out", groups, device="cuda", precision=precision, optimizer={"learning_rate": 1e-12}
    )
    assert report.diagnostics["gamma_mean"] == pytest.approx(1.0, abs=2e-3 if precision == "float32" else 5e-2)


def test_lora_and_activation_checkpointing_train(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    groups = random_groups(perturbed(load(folder), 0.005), groups=4, samples=4)
    common = {"device": "cuda", "optimizer": {"learning_rate": 1e-4}}
    plain, _ = steps(folder, tmp_path / "plain", groups, **common)
    recomputed, _ = steps(folder, tmp_path / "again", groups, activation_checkpointing=True, **common)
    assert recomputed[-1].diagnostics["loss"] == pytest.approx(plain[-1].diagnostics["loss"], rel=1e-4, abs=1e-6)
    adapted, _ = steps(folder, tmp_path / "lora", groups, lora={"rank": 8}, **common)
    assert adapted[0].diagnostics["loss"] == pytest.approx(plain[0].diagnostics["loss"], rel=1e-4, abs=1e-6)
    assert all(report.skipped is None for report in adapted)


def test_what_lies_in_host_memory_learns_the_same(tmp_path: Path) -> None:
    """The copies of slices overlap with what is computed: one that came too late, or went too early, would show."""
    folder = save_model(tmp_path / "model", hidden_size=256)
    model = load(folder).to(torch.bfloat16)
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder)
    groups = random_groups(perturbed(load(folder), 0.005), groups=4, samples=4)
    for fused in (False, True):
        found = {}
        for offload in ("none", "moments", "masters"):
            optimizer = {"learning_rate": 1e-3, "fused": fused, "offload": offload, "update_bytes": 1 << 20}
            _, found[offload] = steps(
                folder,
                tmp_path / f"{offload} {fused}",
                groups,
                device="cuda",
                precision="bfloat16",
                optimizer=optimizer,
            )
        for offload in ("moments", "masters"):
            for name, tensor in found["none"].items():
                torch.testing.assert_close(found[offload][name], tensor, rtol=1e-2, atol=1e-4)


def test_slices_on_their_way_change_no_bit() -> None:
    """More of them than there are slots, of parameters that have nothing else in common."""
    made = {}
    for offload in ("none", "moments"):
        generator = torch.Generator("cuda").manual_seed(0)
        parameters = [
            torch.nn.Parameter(torch.randn(n, 300, generator=generator, device="cuda")) for n in (5000, 7, 900)
        ]
        settings = OptimizerSettings.model_validate(
            {"offload": offload, "update_bytes": 1 << 20, "learning_rate": 1e-2}
        )
        optimizer = AdamW(parameters, settings)
        for _ in range(20):
            for parameter in parameters:
                parameter.grad = torch.randn(parameter.shape, generator=generator, device="cuda")
            optimizer.step()
        state = [optimizer.state[p][name].cpu() for p in parameters for name in ("exp_avg", "exp_avg_sq")]
        made[offload] = [*(p.detach().cpu() for p in parameters), *state]
    assert all(torch.equal(here, there) for here, there in zip(made["moments"], made["none"], strict=True))


@pytest.mark.parametrize(
    ("name", "is_available"),
    [("flash_attention_2", is_flash_attn_2_available), ("flash_attention_3", is_flash_attn_3_available)],
)
@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v3"])
def test_flash_attention_trains_as_segments_do(
    tmp_path: Path, kind: str, name: str, is_available: Callable[[], bool]
) -> None:
    if not is_available():
        pytest.skip(f"{name} is not installed")
    folder = save_model(tmp_path / "model", kind)
    groups = random_groups(perturbed(load(folder), 0.005), groups=4, samples=4)
    common = {"device": "cuda", "precision": "bfloat16", "routing_replay": "r3"}
    expected, _ = steps(folder, tmp_path / "segments", groups, attn_implementation="segments", **common)
    found, _ = steps(folder, tmp_path / "flash", groups, attn_implementation=name, **common)
    for here, there in zip(found, expected, strict=True):
        assert here.skipped is None
        for key in ("loss", "grad_norm", "gamma_mean", "entropy"):
            assert here.diagnostics[key] == pytest.approx(there.diagnostics[key], rel=5e-2, abs=1e-3), key


@pytest.mark.parametrize("kind", ["qwen3_moe", "olmoe"])
async def test_the_torch_engine_samples_what_transformers_computes_before_and_after_an_update(
    tmp_path: Path, kind: str
) -> None:
    first, second = save_model(tmp_path / "a", kind, 1), save_model(tmp_path / "b", kind, 2)
    engine = TorchEngine(first, EngineOptions(max_num_seqs=4), device="cuda")
    await engine.start()
    prompts = [[5, 6, 7], [2, 9, 4, 4, 8, 3], [11]]
    try:
        references = {0: Reference(first)}
        for _ in range(2):
            groups = await asyncio.gather(*(engine.generate(prompt, SAMPLING) for prompt in prompts))
            for prompt, completions in zip(prompts, groups, strict=True):
                for completion in completions:
                    check(completion, prompt, SAMPLING, references)
            references = {await publish(engine, second): Reference(second)}
    finally:
        await engine.close()


def test_a_checkpoint_of_the_gpu_goes_on_bit_for_bit(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model")
    groups = random_groups(perturbed(load(folder), 0.005), groups=2, samples=4)
    settings = LearnerSettings(device="cuda")
    trainer = Trainer(settings, RunSettings(model=folder), RolloutSettings())
    trainer.train_step(groups)
    (tmp_path / "checkpoint").mkdir()
    save(trainer, tmp_path / "checkpoint", {"note": 1})
    expected = trainer.train_step(groups).diagnostics["loss"]
    again = Trainer(settings, RunSettings(model=folder), RolloutSettings())
    assert again.load(tmp_path / "checkpoint") == {"note": 1}
    assert again.train_step(groups).diagnostics["loss"] == pytest.approx(expected, rel=1e-6)
