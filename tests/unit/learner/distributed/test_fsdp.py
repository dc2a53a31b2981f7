"""Sharding: several ranks learn what one learns, and any number of ranks goes on from what another number saved."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from services.learner.data.batch import Group
from services.learner.distributed.fsdp import full_state_dict, shard
from services.learner.distributed.ranks import Ranks
from services.learner.settings import LoraSettings
from services.learner.trainer import Trainer
from shared.settings import RolloutSettings, RunSettings
from tests.support import torchrun
from tests.support.models import save_model
from tests.support.rollouts import load, perturbed, random_episodes, random_groups
from tests.support.settings import learner_settings

STEPS, SAVED_AT = 5, 2
# Several passes for each update, in numbers that ranks do not divide, several chunks of logits in each pass, and
# gradients that are clipped.
COMMON: dict[str, Any] = {
    "optimizer__learning_rate": 1e-4,
    "minibatches": 2,
    "micro_batch_tokens": 40,
    "head_chunk_bytes": 2_000,
    "optimizer__max_grad_norm": 0.1,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "experts, recomputed": ("qwen3_moe", {"algorithm": "rspo", "activation_checkpointing": True}),
    "tied embeddings": ("qwen3_dense", {"algorithm": "grpo"}),
    "passes without gradient": (
        "llama4",
        {"algorithm": "gspo", "proximal": "recompute", "routing_replay": "r2", "kl_coefficient": 0.1},
    ),
    "adapters": ("deepseek_v3", {"algorithm": "gmpo", "lora": LoraSettings(rank=4)}),
    "episodes": ("qwen3_moe", {"algorithm": "rspo", "turn_advantages": True, "routing_replay": "r3"}),
}


def make(folder: Path, case: str, ranks: Ranks | None = None) -> Trainer:
    kind, settings = CASES[case]
    return Trainer(
        learner_settings(**COMMON | settings), RunSettings(model=folder / kind, steps=STEPS), RolloutSettings(), ranks
    )


def batches(folder: Path, case: str) -> list[list[Group]]:
    """Sampled by other weights. The third batch is two responses: three ranks have not one pass each."""
    make_groups = random_episodes if case == "episodes" else random_groups
    groups = make_groups(perturbed(load(folder / CASES[case][0]), 0.005), groups=5, samples=3)
    few = [replace(groups[0], samples=groups[0].samples[:2])]
    return [few if step == 2 else groups for step in range(STEPS)]


def learn(trainer: Trainer, folder: Path, case: str, out: Path) -> None:
    """From wherever the trainer stands to the last step; leaves losses, a checkpoint on the way and an export."""
    out.mkdir(parents=True)
    losses = {}
    for batch in batches(folder, case)[trainer.step :]:
        losses[trainer.step] = dict(trainer.train_step(batch).diagnostics)
        if trainer.step == SAVED_AT:
            (out / "saved").mkdir()
            trainer.save(out / "saved", {"groups": ["a"]})
    trainer.export_weights(out)
    (out / "diagnostics.json").write_text(json.dumps(losses))


class Shared(Ranks):
    """One group for one case after the other: their trainers do not close it."""

    def close(self) -> None:
        pass


def part(ranks: Ranks, folder: str, *cases: str) -> None:
    """Rank 0 learns, exports what a single process had saved, and lets the others end."""
    ranks.__class__ = Shared
    for case in cases:
        trainer = make(Path(folder), case, ranks)
        if ranks.rank:
            trainer.follow()
            continue
        out = Path(folder, case, "several")
        learn(trainer, Path(folder), case, out)
        assert trainer.load(Path(folder, case, "one", "saved")) == {"groups": ["a"]}
        assert trainer.step == SAVED_AT
        (out / "loaded").mkdir()
        trainer.export_weights(out / "loaded")
        trainer.close()
    ranks.__class__ = Ranks


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def assert_same(found: Path, expected: Path, exactly: bool = False) -> None:
    ours, theirs = weights(found), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0 if exactly else 1e-5, msg=name)


@pytest.mark.parametrize(("size", "cases"), [(2, list(CASES)), (3, ["experts, recomputed"])])
def test_several_ranks_learn_what_one_does(tmp_path: Path, size: int, cases: list[str]) -> None:
    for kind in {CASES[case][0] for case in cases}:
        save_model(tmp_path / kind, kind)
    for case in cases:
        learn(make(tmp_path, case), tmp_path, case, tmp_path / case / "one")
    torchrun.run(size, part, tmp_path, *cases)
    for case in cases:
        one, several, resumed = (tmp_path / case / name for name in ("one", "several", "resumed"))
        found, expected = (json.loads((out / "diagnostics.json").read_text()) for out in (several, one))
        assert list(found) == list(expected) == [str(step + 1) for step in range(STEPS)]
        for step, values in expected.items():
            assert found[step] == pytest.approx(values, rel=1e-4, abs=1e-5), (case, step)
            assert found[step]["loss"] == pytest.approx(values["loss"], abs=1e-5), (case, step)
        assert_same(several, one)

        straight = make(tmp_path, case)
        straight.load(one / "saved")
        (one / "loaded").mkdir()
        straight.export_weights(one / "loaded")
        assert_same(several / "loaded", one / "loaded", exactly=True)

        fewer = make(tmp_path, case)
        assert fewer.load(several / "saved") == {"groups": ["a"]}
        learn(fewer, tmp_path, case, resumed)
        assert_same(resumed, several)


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
