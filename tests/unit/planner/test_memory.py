"""The planner's memory against what real training steps take, and against sums that can be done by hand."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from services.generation.settings import GenerationSettings
from services.learner.settings import LearnerSettings
from services.learner.trainer import Trainer
from services.planner import memory
from services.planner.model import read
from shared.errors import InvalidInputError
from shared.settings import RolloutSettings, RunSettings
from tests.bench.memory import peak_bytes
from tests.bench.shapes import SHAPES, Shape, recorded, write_model
from tests.support.models import VOCABULARY, save_model
from tests.support.rollouts import load, random_groups

CPU = torch.device("cpu")
HELD = 12  # bytes of a parameter that a step finds: itself and two moments
LENGTH = 128  # tokens of every sequence
TOKENS = 4 * LENGTH  # in a micro-batch
SMALL = replace(
    SHAPES["tiny"],
    hidden_size=128,
    num_hidden_layers=4,
    moe_intermediate_size=64,
    head_dim=32,
    sequence_tokens=LENGTH,
    micro_batch_tokens=TOKENS,
)


def peak(shape: Shape, folder: Path, settings: LearnerSettings) -> int:
    """The most bytes that tensors take in a step of two micro-batches, so that gradients are there in the second."""
    prompt = 16
    groups = recorded(shape, folder, CPU, torch.float32, prompt, [LENGTH - prompt] * 8)
    run = RunSettings(id="peak", model=folder, folder=folder)
    with closing(Trainer(settings, run, RolloutSettings(max_tokens=LENGTH))) as trainer:
        for group in groups:
            trainer.check(group)
        trainer.train_step(groups)
        return peak_bytes(lambda: trainer.train_step(groups), CPU, HELD * read(folder).parameters)


def planned(folder: Path, settings: LearnerSettings) -> int:
    """What the planner says of one rank; a step publishes nothing, and no checkpoint is written."""
    parts = memory.learner(read(folder), settings, 1, LENGTH)
    return sum(part.bytes for part in parts if part.what not in ("weights to publish", "copy for a checkpoint"))


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"num_experts": 32, "num_experts_per_tok": 4}, {}),
        ({"moe_intermediate_size": 512}, {"algorithm": "gmpo"}),
        ({"num_hidden_layers": 8}, {"activation_checkpointing": True}),
        ({"vocab_size": 16384}, {"head_chunk_bytes": 4 << 20}),
        ({}, {"precision": "bfloat16"}),
        ({}, {"optimizer": {"moments": "bfloat16"}}),
        ({}, {"optimizer": {"offload": "moments", "update_bytes": 16 << 20}}),
    ],
    ids=["experts", "wide", "checkpointing", "vocabulary", "bfloat16", "narrow moments", "offload"],
)
def test_the_learner_takes_what_is_planned(
    changes: dict[str, int], settings: dict[str, object], tmp_path: Path
) -> None:
    shape = replace(SMALL, **changes)
    write_model(shape, tmp_path, CPU)
    learner = LearnerSettings.model_validate({"micro_batch_tokens": TOKENS, **settings})
    assert planned(tmp_path, learner) == pytest.approx(peak(shape, tmp_path, learner), rel=0.1)


def test_what_is_in_host_memory_is_shared_by_the_ranks_of_a_machine(tmp_path: Path) -> None:
    """Live weights in bfloat16, gradients in float32 on each device; moments and masters on the host."""
    model = replace(read(save_model(tmp_path)), width=2)
    table = {"device": "cuda", "precision": "bfloat16", "optimizer": {"offload": "masters", "moments": "bfloat16"}}
    parts = list(memory.learner(model, LearnerSettings.model_validate(table), 4, LENGTH))
    each, whole = ({part.what: part for part in found} for found in (parts, memory.of_machine(parts, 4)))
    on_device = {"trained weights": 2, "gradients": 4}
    on_host = {"moments of AdamW": 4, "master weights": 4, "copy for a checkpoint": 8}
    for what, width in (on_device | on_host).items():
        assert each[what].bytes == width * model.parameters // 4
        assert each[what].device == ("cuda" if what in on_device else "cpu")
        assert whole[what].bytes == each[what].bytes * (1 if what in on_device else 4)
    assert whole["weights to publish"] == each["weights to publish"]


def test_an_update_counts_where_it_takes_more_than_a_pass(tmp_path: Path) -> None:
    model = read(save_model(tmp_path))
    for tokens, counts in ((4096, False), (1, True)):
        table = {"micro_batch_tokens": tokens, "optimizer": {"offload": "moments", "update_bytes": 1 << 30}}
        parts = {part.what: part for part in memory.learner(model, LearnerSettings.model_validate(table), 1, tokens)}
        assert ("update, beyond a pass" in parts) == counts


def test_narrow_moments_take_half(tmp_path: Path) -> None:
    model, narrow = read(save_model(tmp_path)), LearnerSettings.model_validate({"optimizer": {"moments": "bfloat16"}})
    wide, half = (
        {part.what: part.bytes for part in memory.learner(model, each, 1, LENGTH)}
        for each in (LearnerSettings(), narrow)
    )
    assert (wide["moments of AdamW"], half["moments of AdamW"]) == (8 * model.parameters, 4 * model.parameters)
    assert (wide["copy for a checkpoint"], half["copy for a checkpoint"]) == (
        12 * model.parameters,
        8 * model.parameters,
    )


@pytest.mark.parametrize("kind", ["mixtral", "olmoe"])
def test_other_families_take_what_is_planned(kind: str, tmp_path: Path) -> None:
    """One without norms of queries and keys, with wide experts; one whose norms are as wide as all heads."""
    folder = save_model(tmp_path / kind, kind, num_hidden_layers=4)
    shape = replace(SMALL, vocab_size=VOCABULARY)
    learner = LearnerSettings(micro_batch_tokens=TOKENS)
    assert planned(folder, learner) == pytest.approx(peak(shape, folder, learner), rel=0.1)


def test_a_copy_for_a_checkpoint_takes_what_is_planned(tmp_path: Path) -> None:
    folder, learner = save_model(tmp_path), LearnerSettings()
    with closing(Trainer(learner, RunSettings(model=folder), RolloutSettings())) as trainer:
        trainer.train_step(random_groups(load(folder), groups=2, samples=3))
        with closing(trainer.snapshot({})) as snapshot:
            files = snapshot.write(tmp_path)
    planned = {part.what: part.bytes for part in memory.learner(read(folder), learner, 1, LENGTH)}
    assert planned["copy for a checkpoint"] == pytest.approx(sum(int(each["size"]) for each in files.values()), rel=0.1)
    waiting = LearnerSettings.model_validate({"checkpoints": {"background": False}})
    assert "copy for a checkpoint" not in {part.what for part in memory.learner(read(folder), waiting, 1, LENGTH)}


def test_a_version_that_is_sent_takes_what_is_planned(tmp_path: Path) -> None:
    folder, learner = save_model(tmp_path), LearnerSettings()
    run = RunSettings(model=folder, weights_transfer="broadcast")
    with closing(Trainer(learner, run, RolloutSettings())) as trainer:
        sent = trainer.take_version().whole
    one, four = (
        {part.what: part.bytes for part in memory.learner(read(folder), learner, ranks, LENGTH, sends=True)}
        for ranks in (1, 4)
    )
    assert one["version that is sent"] == pytest.approx(sent, rel=0.01)
    assert four["version that is sent"] == one["version that is sent"] // 4
    assert "version that is sent" not in {part.what for part in memory.learner(read(folder), learner, 1, LENGTH)}


def test_what_a_rank_holds_is_divided_over_the_ranks(tmp_path: Path) -> None:
    model = read(save_model(tmp_path))
    one, four = (
        {part.what: part.bytes for part in memory.learner(model, LearnerSettings(), ranks, LENGTH)} for ranks in (1, 4)
    )
    assert one["trained weights"] == 4 * model.parameters
    assert one["moments of AdamW"] == 8 * model.parameters
    for what in ("trained weights", "gradients", "moments of AdamW"):
        assert four[what] == one[what] // 4
    assert four["activations of a pass"] == one["activations of a pass"]
    assert "gathered layers" in four.keys() - one.keys()


def test_frozen_weights_are_as_narrow_as_those_of_the_folder_in_a_pass_in_bfloat16(tmp_path: Path) -> None:
    model = replace(read(save_model(tmp_path)), width=2)
    for precision, width in (("float32", 4), ("bfloat16", 2)):
        settings = LearnerSettings.model_validate({"precision": precision, "kl_coefficient": 0.1})
        adapted, whole = (
            {part.what: part.bytes for part in memory.learner(model, settings, 1, LENGTH, trained)}
            for trained in (10, None)
        )
        assert adapted["frozen weights"] == whole["reference model"] == width * model.parameters
        assert (adapted["trained weights"], whole["trained weights"]) == (40, 4 * model.parameters)


def test_copies_of_the_weights_are_divided_over_fewer_ranks(tmp_path: Path) -> None:
    model, settings = read(save_model(tmp_path)), LearnerSettings.model_validate({"mesh": {"replicate": 2}})
    copies, two = (
        {part.what: part.bytes for part in memory.learner(model, each, ranks, LENGTH)}
        for each, ranks in ((settings, 4), (LearnerSettings(), 2))
    )
    assert copies == two
    with pytest.raises(
        InvalidInputError, match="replicate 2 x shard 1 x expert 1 x context 1 = 2 ranks, and the learner has 3"
    ):
        list(memory.learner(model, settings, 3, LENGTH))


def test_divided_experts_are_not_gathered(tmp_path: Path) -> None:
    model, settings = read(save_model(tmp_path)), LearnerSettings.model_validate({"mesh": {"expert": 4}})
    divided, gathered = (
        {part.what: part.bytes for part in memory.learner(model, each, 4, LENGTH)}
        for each in (settings, LearnerSettings())
    )
    routed, layer = model.layers[0].routed, model.layers[0].parameters
    assert layer > routed == model.routed_parameters // len(model.layers) > 0
    # Two layers of weights, and one of gradients in the width of weights and in float32.
    assert gathered["gathered layers"] - divided["gathered layers"] == 4 * (2 + 2) * routed * 3 // 4
    assert divided["trained weights"] == gathered["trained weights"]


def test_a_divided_row_takes_a_part_of_the_memory_of_its_pass(tmp_path: Path) -> None:
    """Two key and value heads are there twice among four ranks."""
    model = read(save_model(tmp_path))
    plain, two, four = (
        {part.what: part.bytes for part in memory.learner(model, LearnerSettings.model_validate(each), 4, LENGTH)}
        for each in ({}, {"mesh": {"context": 2}}, {"mesh": {"context": 4}})
    )
    passes = "activations of a pass"
    assert two[passes] == plain[passes] // 2
    keys = sum(layer.key for layer in model.layers)
    assert four[passes] == plain[passes] // 4 + LearnerSettings().micro_batch_tokens // 4 * 8 * keys
    assert two["trained weights"] == four["trained weights"] == plain["trained weights"]
    with pytest.raises(InvalidInputError, match=r"mesh\.context is 3; .* 4 attention heads .*set it to 1 or 2 or 4"):
        list(memory.learner(model, LearnerSettings.model_validate({"mesh": {"context": 3}}), 3, LENGTH))


def test_an_engine_takes_its_weights_and_its_cache(tmp_path: Path) -> None:
    model = read(save_model(tmp_path))
    vllm = {"kv_cache_bytes": 1 << 20, "tensor_parallel_size": 2, "dtype": "bfloat16"}
    settings = GenerationSettings.model_validate({"engine": "vllm", "vllm": vllm})
    found = {part.what: part.bytes for part in memory.generation(model, settings, "cuda")}
    assert found == {"weights": model.parameters, "KV cache": 1 << 20}
