import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer, ParamWrapper
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from routershift.routing.routers import routers_of
from services.learner.model.lora import (
    GroupedExperts,
    adapters,
    add_lora,
    merged_rows,
    plain_name,
    save_adapters,
    without_adapters,
)
from services.learner.settings import LoraSettings
from shared.errors import PreconditionError
from tests.support.models import LAYERS, VOCABULARY, save_model

KINDS = [
    "qwen3_moe", "qwen2_moe", "mixtral", "olmoe", "deepseek_v3", "glm4_moe", "glm_moe_dsa", "minimax_m2", "gpt_oss",
    "llama4", "qwen3_dense",
]  # fmt: skip
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
FEED_FORWARD = {"experts", "gate_proj", "up_proj", "down_proj"}  # "experts": the two stacked parameters
TOKENS = torch.arange(34).remainder(VOCABULARY).view(2, 17)


def load(folder: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.train()


def logits(model: PreTrainedModel) -> Tensor:
    result: Tensor = model(TOKENS, use_cache=False).logits
    return result


def adapted(folder: Path, **settings: Any) -> PreTrainedModel:
    """With adapters that do something."""
    model = load(folder)
    add_lora(model, LoraSettings(**({"rank": 4} | settings)), seed=1)
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_base_and_comes_back_to_it(kind: str, tmp_path: Path) -> None:
    base = load(save_model(tmp_path, kind))
    model = load(tmp_path)
    add_lora(model, LoraSettings(rank=4), seed=1)
    assert type(model) is type(base)
    assert torch.equal(logits(model), logits(base))

    model = adapted(tmp_path)
    assert (logits(model) - logits(base)).abs().max() > 0.1
    with torch.no_grad(), without_adapters(model):
        assert torch.equal(logits(model), logits(base))
    assert {p.requires_grad for n, p in model.named_parameters() if ".lora_" in n} == {True}


def merge(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The state_dict that it would have without LoRA, merged by halves, as two ranks do."""
    found, merged = adapters(model), {}
    for name, tensor in model.state_dict().items():
        if ".lora_" not in name:
            merged[plain_name(name)] = tensor
            if adapter := found.get(plain_name(name)):
                first, second = tensor.tensor_split(2)
                parts = merged_rows(first, 0, adapter), merged_rows(second, len(first), adapter)
                merged[plain_name(name)] = torch.cat(parts)
    return merged


@pytest.mark.parametrize("kind", KINDS)
def test_merged_weights_are_the_adapted_model(kind: str, tmp_path: Path) -> None:
    base = load(save_model(tmp_path / "base", kind)).state_dict()
    model = adapted(tmp_path / "base", alpha=8.0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    merged = merge(model)
    assert {n: (t.shape, t.dtype) for n, t in merged.items()} == {n: (t.shape, t.dtype) for n, t in base.items()}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    model.save_pretrained(tmp_path / "export", state_dict=dict(merged))
    torch.testing.assert_close(logits(load(tmp_path / "export")), logits(model), rtol=1e-5, atol=2e-5)

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.merge()
    for name, tensor in model.state_dict().items():
        if ".lora_" not in name:
            torch.testing.assert_close(merged[name.replace(".base_layer", "")], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_adapters_are_loaded_by_peft(kind: str, tmp_path: Path) -> None:
    model = adapted(save_model(tmp_path / "base", kind), alpha=8.0)
    lora = LoraSettings(rank=4, alpha=8.0)
    save_adapters(tmp_path / "adapter", model.state_dict(), model, lora, str(tmp_path / "base"))
    loaded = PeftModel.from_pretrained(load(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("targets", "changed", "count"),
    [
        ("attention", ATTENTION, 4),
        ("experts", FEED_FORWARD, 5),
        ("all", ATTENTION | FEED_FORWARD, 9),
    ],
)
def test_targets(targets: str, changed: set[str], count: int, tmp_path: Path) -> None:
    base = load(save_model(tmp_path, "qwen2_moe")).state_dict()
    model = adapted(tmp_path, targets=targets)
    merged = merge(model)
    moved = {name for name in base if not torch.equal(merged[name], base[name])}
    assert {name.split(".")[-2] for name in moved} == changed  # neither the router nor the gate of the shared expert
    assert len(moved) == count * LAYERS


def test_latent_attention_is_adapted(tmp_path: Path) -> None:
    model = adapted(save_model(tmp_path, "deepseek_v3", q_lora_rank=16), targets="attention")
    names = {name.split(".")[-4] for name, p in model.named_parameters() if p.requires_grad}
    assert names == {"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"}


def test_model_without_known_weights_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=8, n_head=1, n_layer=1, bos_token_id=0, eos_token_id=0))
    with pytest.raises(PreconditionError, match=r"lora\.targets is 'attention'; model type 'gpt2' .* q_proj"):
        add_lora(model, LoraSettings(rank=4, targets="attention"), seed=0)


def test_adapters_come_from_the_seed_alone(tmp_path: Path) -> None:
    save_model(tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(1)
    states = []
    for seed in (7, 7, 8):
        torch.manual_seed(5)
        model = load(tmp_path)
        torch.manual_seed(5)
        add_lora(model, LoraSettings(rank=4), seed)
        assert torch.equal(torch.rand(1), expected)
        states.append(torch.cat([p.flatten() for n, p in model.named_parameters() if ".lora_A." in n]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt_oss"])
def test_grouped_experts_agree_with_weights_that_are_made(kind: str, tmp_path: Path) -> None:
    model = adapted(save_model(tmp_path, kind), targets="experts")
    reference = copy.deepcopy(model)
    for module in reference.modules():
        if isinstance(module, GroupedExperts):
            module.__class__ = ParamWrapper
    for each in (model, reference):
        logits(each).square().mean().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits(model), logits(reference), rtol=1e-5, atol=2e-5)
    expected = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-4, atol=1e-5)


def test_gradient_reaches_exactly_the_adapters(tmp_path: Path) -> None:
    save_model(tmp_path, "qwen2_moe")
    found = []
    for checkpointing in (False, True):
        model = adapted(tmp_path)
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        routed, heads = [], []
        for router in routers_of(model).values():
            router.register_forward_hook(lambda *_: routed.append(1))  # noqa: B023
        model.get_output_embeddings().register_forward_pre_hook(lambda *_: heads.append(1))  # noqa: B023
        logits(model).square().mean().backward()  # type: ignore[no-untyped-call]
        assert len(routed) == LAYERS * (2 if checkpointing else 1)
        assert len(heads) == 1
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        assert gradients.keys() == {n for n, _ in model.named_parameters() if ".lora_" in n}
        assert all(gradient.abs().max() > 0 for gradient in gradients.values())
        found.append(gradients)
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])


def test_training_moves_the_merged_weights_and_nothing_else(tmp_path: Path) -> None:
    base = load(save_model(tmp_path)).state_dict()
    model = load(tmp_path)
    add_lora(model, LoraSettings(rank=4), seed=1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)
    losses = []
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(logits(model)[:, :-1].flatten(0, 1), TOKENS[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    merged = merge(model)
    moved = {name.split(".", 3)[3] for name in base if not torch.equal(merged[name], base[name])}
    projections = {f"self_attn.{letter}_proj.weight" for letter in "qkvo"}
    assert moved == projections | {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
