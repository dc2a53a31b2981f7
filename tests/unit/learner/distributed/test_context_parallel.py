"""Divided rows: every family reads them as whole ones, and what is learnt is what one process learns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from services.learner.distributed.context_parallel import check as check_model
from services.learner.distributed.division import check_heads, key_copies
from services.learner.distributed.fsdp import shard
from services.learner.distributed.ranks import Ranks
from services.learner.distributed.settings import MeshShape
from services.learner.model.attention import SEGMENTS, Attention
from services.learner.model.isolation import check_division
from services.learner.trainer import Trainer
from shared.errors import InvalidInputError, PreconditionError
from shared.settings import RolloutSettings, RunSettings
from tests.support import torchrun
from tests.support.attention import LENGTHS, MASKED, Varlen, gemma, packed
from tests.support.models import KINDS, save_model
from tests.support.ranked import Case, check
from tests.support.rollouts import load
from tests.support.settings import learner_settings

WINDOWS: dict[str, Any] = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}


def test_ranks_that_divide_rows_learn_what_one_process_does(tmp_path: Path) -> None:
    replayed = {"algorithm": "rspo", "routing_replay": "r3", "activation_checkpointing": True}
    episodes = {"algorithm": "rspo", "turn_advantages": True, "entropy_coefficient": 0.01, "kl_coefficient": 0.1}
    cases = [
        Case("replayed", "qwen3_moe", replayed, {"context": 2}, {"shard": 2}),
        Case("episodes", "qwen3_moe", episodes, {"context": 2}, {"expert": 2}, episodes=True),
    ]
    check(tmp_path, 2, cases)


def test_meshes_of_divided_rows_learn_what_one_process_does(tmp_path: Path) -> None:
    """Sequence-level ratios are of tokens of several ranks, and four ranks share two key and value heads."""
    by_sequence = {"algorithm": "gspo", "correction__kind": "sequence_mask", "correction__high": 1.01}
    own_routes = {"algorithm": "gmpo", "proximal": "recompute", "routing_replay": "r2"}
    adapted = {"algorithm": "rspo", "lora__rank": 4, "lora__targets": "attention", "kl_coefficient": 0.1}
    cases = [
        Case("shards", "qwen3_moe", by_sequence, {"shard": 2, "context": 2}, {"context": 4}),
        Case("experts", "qwen3_moe", own_routes, {"expert": 2, "context": 2}, {"replicate": 2, "context": 2}),
        Case("adapters", "qwen3_moe", adapted, {"context": 4}, {"shard": 4}),
    ]
    check(tmp_path, 4, cases)


def models(folder: Path) -> dict[str, PreTrainedModel]:
    """The same whenever it is called: of each folder, and one with soft caps."""
    return {path.name: load(path) for path in sorted(folder.iterdir())} | {"gemma": gemma()}


def families_part(ranks: Ranks, folder: str) -> None:
    ranks.arrange(MeshShape(1, 1, 1, ranks.size))
    whole = Attention(SEGMENTS)
    plain, ids, positions = models(Path(folder)), *packed((11, 11, 7, 5, 13))  # 47 tokens: no multiple
    for kind, model in models(Path(folder)).items():
        divides = replace(whole, context=ranks.context)
        for one in (model, plain[kind]):
            whole.set_on(one)
        shard(model, ranks)
        found, expected = (
            attention.logits(one, ids, positions) for attention, one in ((divides, model), (whole, plain[kind]))
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-5, msg=kind)
        weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1))
        for logits in (found, expected):
            (logits * weights).sum().backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        for name, parameter in model.named_parameters():
            wanted: Any = plain[kind].get_parameter(name).grad
            assert (parameter.grad is None) == (wanted is None), (kind, name)
            if wanted is not None:
                gradient: Any = parameter.grad
                scale = max(1.0, float(wanted.abs().max()))
                torch.testing.assert_close(
                    gradient.full_tensor(), wanted, rtol=0, atol=1e-5 * scale, msg=f"{kind}: {name}"
                )


def test_every_family_reads_a_divided_row_as_a_whole_one(tmp_path: Path) -> None:
    """Windows and sinks are of single heads too."""
    for kind in KINDS:
        if kind not in MASKED:
            save_model(tmp_path / kind, kind)
    save_model(tmp_path / "windows", "qwen3_dense", **WINDOWS)
    torchrun.run(2, families_part, tmp_path)


def flash_part(ranks: Ranks, folder: str) -> None:
    ranks.arrange(MeshShape(1, 1, 1, ranks.size))
    with pytest.MonkeyPatch.context() as patch:
        varlen = Varlen.in_place_of_flash_attention(patch)
        for path in sorted(Path(folder).iterdir()):
            model, plain = load(path), load(path)
            chosen, whole = Attention("flash_attention_2", ranks.context), Attention(SEGMENTS)
            whole.set_on(plain)
            chosen.set_on(model)
            chosen.set_flash_on(model)
            ids, positions = packed()
            varlen.calls.clear()
            found, expected = chosen.logits(model, ids, positions), whole.logits(plain, ids, positions)
            torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)
            assert len(varlen.calls) == model.config.num_hidden_layers
            for call in varlen.calls:
                assert call["cu_seqlens_q"].diff().tolist() == list(LENGTHS)
                assert call["heads"] == model.config.num_attention_heads // ranks.size


def test_flash_attention_gets_the_whole_row_of_a_part_of_the_heads(tmp_path: Path) -> None:
    """With a window, and with values that are narrower than keys."""
    save_model(tmp_path / "mixtral", "mixtral", sliding_window=4)
    save_model(tmp_path / "deepseek_v3", "deepseek_v3", v_head_dim=16)
    torchrun.run(2, flash_part, tmp_path)


def half_part(ranks: Ranks, folder: str) -> None:
    ranks.arrange(MeshShape(1, 1, 1, ranks.size))
    model = load(Path(folder))
    divides = Attention(SEGMENTS, ranks.context)
    divides.set_on(model)
    check_division(model, divides)
    handle = model.get_input_embeddings().register_forward_hook(  # as learnt positions that count from the first token
        lambda module, inputs, output: output + torch.linspace(-1, 1, output.shape[1])[:, None]
    )
    with pytest.raises(PreconditionError, match=r"mesh\.context is 2; .*'qwen3_moe' reads more .*set learner\.mesh"):
        check_division(model, divides)
    handle.remove()
    shard(model, ranks, torch.bfloat16, torch.float32)
    check_division(model, divides)
    logits = divides.logits(model, *packed())
    assert logits.dtype == torch.bfloat16
    logits.float().log_softmax(-1)[:, 5].sum().backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_what_ranks_cannot_divide_is_found_by_a_trial_and_bfloat16_is_no_such_thing(tmp_path: Path) -> None:
    torchrun.run(2, half_part, save_model(tmp_path))


def test_ranks_of_a_group_read_the_same_rows() -> None:
    shape = MeshShape(replicate=2, shard=1, expert=2, context=3)
    assert (shape.readers, shape.holders) == (4, 6)
    assert [shape.reader(rank) for rank in range(12)] == [0, 1] * 3 + [2, 3] * 3


def test_heads_that_ranks_cannot_divide_are_refused_with_the_numbers() -> None:
    for context, heads, keys, possible in (
        (3, 4, 2, "1 or 2 or 4"),
        (8, 4, 4, "1 or 2 or 4"),
        (4, 12, 6, "1 or 2 or 3 or 6 or 12"),
    ):
        message = rf"mesh\.context is {context}; .* {heads} attention heads .* {keys} key .* set it to {possible}$"
        with pytest.raises(InvalidInputError, match=message):
            check_heads(context, heads, keys)
    assert [key_copies(context, 4) for context in (1, 2, 4, 8)] == [1, 1, 1, 2]


def refused(folder: Path, **settings: Any) -> None:
    """What the first of two ranks says before it looks for the other."""
    learner = learner_settings(mesh={"context": 2}, algorithm="gmpo", **settings)
    Trainer(learner, RunSettings(model=folder), RolloutSettings(), Ranks(0, 2, torch.device("cpu")))


def test_a_model_whose_rows_cannot_be_divided_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match=r"mesh\.context is 2; .*'llama4_text' reads a mask.*context = 1"):
        refused(save_model(tmp_path / "llama4", "llama4"))
    with pytest.raises(PreconditionError, match=r'reads a mask, .*attn_implementation = "auto"'):
        refused(save_model(tmp_path / "qwen3_moe"), attn_implementation="masked")
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(PreconditionError, match="'qwen3' has rope_type 'dynamic', whose frequencies follow"):
        refused(save_model(tmp_path / "dynamic", "qwen3_dense", rope_parameters=rope))
    linear = load(save_model(tmp_path / "linear", "qwen3_dense"))
    linear.config.model_type = "qwen3_next"
    with pytest.raises(PreconditionError, match="'qwen3_next' cannot be divided: its linear-attention layers carry"):
        check_model(linear, True, MeshShape(1, 1, 1, 2))
