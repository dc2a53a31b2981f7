"""Divided experts: tokens find them on other ranks, in every family, and what is learnt is what one process learns."""

from pathlib import Path

import pytest
import torch
from torch.distributed.tensor import DTensor

from services.learner.distributed.fsdp import clip_gradients, shard
from services.learner.distributed.ranks import Ranks
from services.learner.distributed.settings import MeshShape
from services.learner.settings import LearnerSettings
from services.learner.trainer import Trainer
from shared.errors import InvalidInputError, PreconditionError
from shared.settings import RolloutSettings, RunSettings
from tests.support import torchrun
from tests.support.models import EXPERTS, MOE_KINDS, save_model
from tests.support.ranked import Case, check
from tests.support.rollouts import load
from tests.support.settings import learner_settings

NO_PLAN = "llama4"


def test_divided_experts_learn_what_one_process_does(tmp_path: Path) -> None:
    settings = {"algorithm": "rspo", "routing_replay": "r3", "activation_checkpointing": True}
    meshes = {"shard": 2, "expert": 2}, {"replicate": 2, "expert": 2}
    check(tmp_path, 4, [Case("experts", "qwen3_moe", settings, *meshes)])


def test_copies_of_divided_experts_replay_their_own_routes_beside_adapters_of_attention(tmp_path: Path) -> None:
    settings = {
        "algorithm": "gspo",
        "proximal": "recompute",
        "routing_replay": "r2",
        "kl_coefficient": 0.1,
        "lora__rank": 4,
        "lora__targets": "attention",
    }
    meshes = {"replicate": 2, "expert": 2}, {"shard": 4}
    check(tmp_path, 4, [Case("copies", "deepseek_v3", settings, *meshes)])


def families_part(ranks: Ranks, folder: str, *kinds: str) -> None:
    """Each rank has tokens of its own; the gradient is that of all of them."""
    ranks.arrange(MeshShape(1, 1, 2))
    for kind in kinds:
        model, plain = load(Path(folder, kind)), load(Path(folder, kind))
        shard(model, ranks)
        inputs = [torch.arange(2 + rank, 22)[None] for rank in range(2)]
        found = model(inputs[ranks.rank]).logits
        torch.testing.assert_close(found, plain(inputs[ranks.rank]).logits, rtol=0, atol=2e-5, msg=kind)
        found.log_softmax(-1)[0, :, 5].sum().backward()
        sum(plain(ids).logits.log_softmax(-1)[0, :, 5].sum() for ids in inputs).backward()
        norm = clip_gradients(model.parameters(), 1.0)
        torch.testing.assert_close(norm, clip_gradients(plain.parameters(), 1.0), rtol=1e-4, atol=0, msg=kind)
        divided = 0
        for name, parameter in model.named_parameters():
            expected = plain.get_parameter(name).grad
            assert isinstance(parameter, DTensor)
            assert (parameter.grad is None) == (expected is None)
            if ".experts." in name and parameter.ndim == 3:
                divided += 1
                assert parameter.to_local().shape[0] == EXPERTS // 2
            if isinstance(parameter.grad, DTensor):
                whole = parameter.grad.full_tensor()
                torch.testing.assert_close(whole, expected, rtol=1e-3, atol=1e-5, msg=f"{kind}: {name}")
        assert divided >= 2


def test_every_family_with_a_plan_divides_its_experts(tmp_path: Path) -> None:
    kinds = [kind for kind in MOE_KINDS if kind != NO_PLAN]
    for kind in kinds:
        save_model(tmp_path / kind, kind)
    torchrun.run(2, families_part, tmp_path, *kinds)


def half_part(ranks: Ranks, folder: str) -> None:
    ranks.arrange(MeshShape(1, 1, 2))
    model, plain = load(Path(folder)), load(Path(folder))
    shard(model, ranks, torch.bfloat16, torch.float32)
    inputs = [torch.arange(2 + rank, 22)[None] for rank in range(2)]
    found = model(inputs[ranks.rank]).logits
    assert found.dtype == torch.bfloat16
    found.float().log_softmax(-1)[0, :, 5].sum().backward()
    sum(plain(ids).logits.log_softmax(-1)[0, :, 5].sum() for ids in inputs).backward()
    for name, parameter in model.named_parameters():
        expected = plain.get_parameter(name).grad
        assert isinstance(parameter.grad, DTensor)
        assert expected is not None
        assert parameter.grad.dtype == torch.float32
        whole = parameter.grad.full_tensor()
        assert torch.cosine_similarity(whole.flatten(), expected.flatten(), dim=0) > 0.9, name


def test_divided_experts_compute_in_bfloat16_beside_routers_in_float32(tmp_path: Path) -> None:
    torchrun.run(2, half_part, save_model(tmp_path))


def refused(folder: Path, expert: int, shards: int = 1) -> None:
    """What the first of two ranks says before it looks for the other."""
    settings = learner_settings(mesh={"shard": shards, "expert": expert}, algorithm="gmpo")
    ranks = Ranks(0, shards * expert, torch.device("cpu"))
    Trainer(settings, RunSettings(model=folder), RolloutSettings(), ranks)


def test_a_model_whose_experts_cannot_be_divided_is_refused_by_name(tmp_path: Path) -> None:
    cases = ((NO_PLAN, "no plan that sends tokens to the experts of model_type 'llama4_text'"),
             ("qwen3_dense", "model_type 'qwen3' has no experts"))  # fmt: skip
    for kind, reason in cases:
        with pytest.raises(PreconditionError, match=rf"learner\.mesh\.expert is 2; .*{reason}"):
            refused(save_model(tmp_path / kind, kind), 2)
    folder = save_model(tmp_path / "qwen3_moe")
    for expert, shards in ((3, 1), (4, 4)):
        with pytest.raises(InvalidInputError, match=f"8 experts of a layer are not a multiple of {expert * shards}"):
            refused(folder, expert, shards)


def test_adapters_of_experts_are_refused_with_the_settings() -> None:
    with pytest.raises(ValueError, match=r"lora\.targets is 'all' and mesh\.expert 2: peft interleaves"):
        LearnerSettings.model_validate({"lora": {"rank": 4}, "mesh": {"expert": 2}})
