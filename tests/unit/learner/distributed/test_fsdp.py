"""Sharding: several ranks learn what one learns, and any number of ranks goes on from what another number saved."""

from pathlib import Path

import pytest
import torch

from routershift.routing.families import families
from routershift.routing.routers import read, routers_of
from services.learner.distributed.fsdp import shard
from services.learner.distributed.ranks import Ranks
from tests.support.models import save_model
from tests.support.ranked import Case, check
from tests.support.rollouts import load
from tests.support.sharded import full_state_dict

MOE = Case("experts, recomputed", "qwen3_moe", {"algorithm": "rspo", "activation_checkpointing": True})
CASES = [
    MOE,
    Case("tied embeddings, narrow moments", "qwen3_dense", {"algorithm": "grpo", "optimizer__moments": "bfloat16"}),
    Case(
        "passes without gradient",
        "llama4",
        {"algorithm": "gspo", "proximal": "recompute", "routing_replay": "r2", "kl_coefficient": 0.1},
    ),
    Case("adapters", "deepseek_v3", {"algorithm": "gmpo", "lora__rank": 4}),
    Case(
        "routers frozen, and in float64",
        "qwen3_moe",
        {"algorithm": "rspo", "freeze_router": True, "router_precision": "float64"},
    ),
    Case(
        "episodes",
        "qwen3_moe",
        {"algorithm": "rspo", "turn_advantages": True, "routing_replay": "r3"},
        episodes=True,
    ),
]


@pytest.mark.parametrize(("size", "cases"), [(2, CASES), (3, [MOE])])
def test_several_ranks_learn_what_one_does(tmp_path: Path, size: int, cases: list[Case]) -> None:
    check(tmp_path, size, cases)


def test_half_precision_computes_in_bfloat16_on_float32_weights(tmp_path: Path) -> None:
    model, plain = load(save_model(tmp_path)), load(tmp_path)
    ranks = Ranks.open()
    shard(model, ranks, torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    ids = torch.arange(2, 22)[None]
    for one in (model, plain):
        one(ids).logits.float().log_softmax(-1)[0, :, 5].sum().backward()
    assert model(ids).logits.dtype == torch.bfloat16
    for name, parameter in model.named_parameters():
        expected = plain.get_parameter(name).grad
        assert expected is not None
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        found = parameter.grad.full_tensor()
        assert not torch.equal(found, expected)
        assert torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.9
    state = full_state_dict(model, ranks)
    assert all(torch.equal(state[name], tensor) for name, tensor in plain.state_dict().items())
    ranks.close()


@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v3", "llama4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_routers_have_a_precision_of_their_own(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    """Their logits are those of the master weights in that precision; what follows computes in bfloat16 as before."""
    model, plain = load(save_model(tmp_path, kind)), load(tmp_path)
    router, master = (next(iter(routers_of(one).values())) for one in (model, plain))
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    family = families()[model.config.model_type]
    router.register_forward_hook(lambda _, args, output: seen.append((args[0], read(family, router, output)[0])))
    ranks = Ranks.open()
    shard(model, ranks, torch.bfloat16, dtype)
    logits = model(torch.arange(2, 22)[None]).logits
    hidden, routed = seen[0]
    weight = master.get_parameter("weight").detach().double()
    expected = hidden.double().reshape(-1, hidden.shape[-1]) @ weight.T
    assert torch.equal(hidden.bfloat16().to(hidden.dtype), hidden)  # what the layer before gave
    tolerance = 1e-6 if dtype == torch.float32 or kind == "deepseek_v3" else 1e-14  # DeepSeek's computes in float32
    torch.testing.assert_close(routed.double(), expected, rtol=tolerance, atol=tolerance)
    assert logits.dtype == torch.bfloat16
    logits.float().log_softmax(-1)[0, :, 5].sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    ranks.close()
