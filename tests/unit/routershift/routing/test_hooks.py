"""Routing replay against MoE blocks that are computed by hand, one token and one expert at a time."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import silu
from transformers import PreTrainedModel

from routershift.routing.choices import Replay
from routershift.routing.families import families
from routershift.routing.hooks import Routing
from routershift.routing.routers import combine_weights, routers_of
from services.learner.data.collate import Batch
from shared.errors import InvalidInputError, PreconditionError
from tests.support.models import EXPERTS, MOE_KINDS, TOP_K, save_model
from tests.support.rollouts import forward, load, packed, perturbed, random_groups, routing

SEED = 1


def made(tmp_path: Path, kind: str) -> tuple[PreTrainedModel, Batch]:
    """A model, and rollouts that an older version of it sampled."""
    folder = save_model(tmp_path, kind)
    model = load(folder)
    batch = packed(random_groups(model, groups=3, samples=3))
    return perturbed(model, 0.02), batch


def random_ids(tokens: int, layers: int) -> torch.Tensor:
    """[tokens, L, K] uint8, all different for a token."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.rand(tokens, layers, EXPERTS, generator=generator).topk(TOP_K).indices.to(torch.uint8)


def router_gradients(model: PreTrainedModel) -> list[torch.Tensor]:
    gradients = [router.get_parameter("weight").grad for router in routers_of(model).values()]
    model.zero_grad()
    return [gradient for gradient in gradients if gradient is not None]


def weights_by_hand(kind: str, logits: torch.Tensor, chosen: list[int]) -> torch.Tensor:
    """Combine weights [K] of the chosen experts from a token's logits [E], per family."""
    if kind == "gpt_oss":
        return logits[chosen].softmax(0)
    if kind == "llama4":
        return logits[chosen].sigmoid()
    if kind in {"deepseek_v3", "glm4_moe", "glm_moe_dsa", "minimax_m2"}:
        scores = logits.sigmoid()[chosen]
        return (1.0 if kind == "minimax_m2" else 1.5) * scores / scores.sum()
    scores = logits.softmax(0)[chosen]
    return scores if kind in {"qwen2_moe", "olmoe"} else scores / scores.sum()


def block_by_hand(kind: str, block: Any, hidden: torch.Tensor, chosen: list[int]) -> torch.Tensor:
    """What a MoE block [H] -> [H] must give for one token that is sent to the chosen experts."""
    router = block.router if kind in {"gpt_oss", "llama4"} else block.gate
    logits = router.weight @ hidden
    if kind == "gpt_oss":
        logits = logits + router.bias
    total = torch.zeros_like(hidden)
    for expert, weight in zip(chosen, weights_by_hand(kind, logits, chosen), strict=True):
        if kind == "llama4":
            gate, up = (weight * hidden @ block.experts.gate_up_proj[expert]).chunk(2)
            total += (up * silu(gate)) @ block.experts.down_proj[expert]
        else:
            alone = torch.tensor([[expert]]), torch.ones(1, 1)
            total += weight * block.experts(hidden[None], *alone)[0]
    if kind == "qwen2_moe":
        total += block.shared_expert_gate(hidden).sigmoid() * block.shared_expert(hidden)
    elif kind == "llama4":
        total += block.shared_expert(hidden)
    elif kind in {"deepseek_v3", "glm4_moe", "glm_moe_dsa"}:
        total += block.shared_experts(hidden)
    return total


@pytest.mark.parametrize("kind", MOE_KINDS)
def test_replay_of_a_models_own_routes_changes_nothing(tmp_path: Path, kind: str) -> None:
    """Neither logits nor the gradient of the routers."""
    model, batch = made(tmp_path, kind)
    expected = forward(model, batch)
    expected.logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
    gradients = router_gradients(model)
    replaying = Routing(model, replay="r2")
    with torch.no_grad(), replaying.recording() as recording:
        forward(model, batch)
    own = recording.expert_ids()
    assert own.dtype is torch.uint8
    assert own.shape == (batch.input_ids.numel(), len(gradients), TOP_K)
    with replaying.observing(batch.routes, own) as observation:
        logits = forward(model, batch)
        assert observation.result() is not None
        logits.logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-5)
    for gradient, live in zip(router_gradients(model), gradients, strict=True):
        assert live.abs().max() > 1e-2
        torch.testing.assert_close(gradient, live, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", MOE_KINDS)
def test_the_replayed_experts_are_used_and_no_others(tmp_path: Path, kind: str) -> None:
    model, batch = made(tmp_path, kind)
    replaying = Routing(model, replay="r2")
    own = random_ids(batch.input_ids.numel(), len(replaying.layout.layer_ids))
    blocks: list[tuple[Any, torch.Tensor, torch.Tensor]] = []
    for layer in replaying.layout.layer_ids:
        decoder: Any = model.get_submodule(f"model.layers.{layer}")
        block = decoder.feed_forward if kind == "llama4" else decoder.mlp
        block.register_forward_hook(lambda block, inputs, output: blocks.append((block, inputs[0], output)))
    with replaying.observing(None, own) as observation:
        forward(model, batch).logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
    assert observation.result() is None
    for layer, (block, inputs, output) in enumerate(blocks):
        hidden = inputs.flatten(0, 1)
        outputs = (output[0] if isinstance(output, tuple) else output).reshape(hidden.shape)
        for token in range(0, len(hidden), 5):
            by_hand = block_by_hand(kind, block, hidden[token], own[token, layer].tolist())
            torch.testing.assert_close(outputs[token], by_hand, rtol=1e-4, atol=1e-5)
    assert all(gradient.abs().max() > 1e-2 for gradient in router_gradients(model))


@pytest.mark.parametrize("kind", MOE_KINDS)
def test_r3_replays_the_recorded_routes_and_leaves_the_rest_live(tmp_path: Path, kind: str) -> None:
    """Prompt tokens and missing routes are the rest."""
    model, batch = made(tmp_path, kind)
    assert batch.routes is not None
    missing = batch.routes.missing.clone()
    missing[[0, 7]] = True
    tokens, layers, _ = batch.routes.expert_ids.shape
    routes = replace(batch.routes, expert_ids=random_ids(tokens, layers), missing=missing)
    known = torch.zeros(batch.input_ids.numel(), dtype=torch.bool)
    known[routes.rows[~missing]] = True
    with torch.no_grad(), routing(model) as live:  # these hooks come before the replay, those within come after
        replaying = Routing(model, replay="r3")
        with routing(model) as used, replaying.observing(routes):
            forward(model, batch)
    assert known.any()
    assert not known.all()
    chosen = used[0].expert_ids.sort().values
    assert torch.equal(chosen[~known], live[0].expert_ids.sort().values[~known])
    recorded = torch.zeros_like(chosen)
    recorded[routes.rows] = routes.expert_ids.long().sort().values
    assert torch.equal(chosen[known], recorded[known])


def test_r3_without_any_lag_changes_nothing(tmp_path: Path) -> None:
    model = load(save_model(tmp_path))
    batch = packed(random_groups(model, groups=3, samples=3))
    expected = forward(model, batch)
    with Routing(model, replay="r3").observing(batch.routes) as observation:
        torch.testing.assert_close(forward(model, batch), expected, rtol=1e-6, atol=1e-5)
    shift = observation.result()
    assert shift is not None
    assert shift.log_gamma.abs().max() < 2e-3


@pytest.mark.parametrize("replay", ["r2", "r3"])
@pytest.mark.parametrize("kind", ["qwen3_moe", "llama4"])
def test_activation_checkpointing_replays_in_the_backward_pass_too(tmp_path: Path, kind: str, replay: Replay) -> None:
    model, batch = made(tmp_path, kind)
    assert batch.routes is not None
    tokens, layers, _ = batch.routes.expert_ids.shape
    routes = replace(batch.routes, expert_ids=random_ids(tokens, layers))
    own = random_ids(batch.input_ids.numel(), layers) if replay == "r2" else None
    replaying = Routing(model, replay=replay)
    chosen: list[torch.Tensor] = []
    first = next(iter(routers_of(model).values()))
    first.register_forward_hook(lambda _, __, output: chosen.append(output[0 if kind == "llama4" else 2].detach()))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.train().gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with replaying.observing(routes, own):
            forward(model, batch).logsumexp(-1).sum().backward()  # type: ignore[no-untyped-call]
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        model.zero_grad()
    assert len(chosen) == 3  # the layer really ran again
    assert torch.equal(chosen[1], chosen[2])
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_replay_without_its_routes_is_refused(tmp_path: Path) -> None:
    model, batch = made(tmp_path, "qwen3_moe")
    own = random_ids(batch.input_ids.numel(), 3)
    with pytest.raises(InvalidInputError, match="own routes are absent"), Routing(model, replay="r2").observing(None):
        pass
    with pytest.raises(InvalidInputError, match="router_trace is absent"), Routing(model, replay="r3").observing(None):
        pass
    with pytest.raises(InvalidInputError, match="own routes are given"), Routing(model).observing(None, own):
        pass


def test_a_model_without_routers_has_no_routing(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match=r"'qwen3' is dense or unknown"):
        Routing(load(save_model(tmp_path, "qwen3_dense")))


@pytest.mark.parametrize("kind", ["qwen3_moe", "llama4"])
def test_replayed_weights_are_the_recorded_ones_and_have_no_gradient(tmp_path: Path, kind: str) -> None:
    model, batch = made(tmp_path, kind)
    routes = batch.routes
    assert routes is not None
    replaying, family = Routing(model, replay="r3_weights"), families()[kind if kind == "qwen3_moe" else "llama4_text"]
    seen: list[tuple[Any, Any]] = []
    for router in routers_of(model).values():
        router.register_forward_hook(lambda router, inputs, output: seen.append((router, output)))
    with replaying.observing(routes):
        forward(model, batch)
    for layer, (router, output) in enumerate(seen):
        weights = output[0] if family.sparse else output[1].new_zeros(output[0].shape).scatter(1, output[2], output[1])
        replayed = weights[routes.rows].gather(1, routes.expert_ids[:, layer].long())
        recorded = combine_weights(family, router, routes.log_scores[:, layer].float())
        torch.testing.assert_close(replayed, recorded, rtol=1e-6, atol=1e-7)
        others = torch.ones(len(weights), dtype=torch.bool).index_fill(0, routes.rows, False)
        for part, moves in ((replayed, False), (weights[others], True)):
            (gradient,) = torch.autograd.grad(part.square().sum(), router.weight, retain_graph=True)
            assert bool(gradient.abs().max() > 1e-6) == moves
