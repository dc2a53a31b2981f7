"""Which GPUs train and which sample."""

import dataclasses

import pytest

from routershift.errors import InvalidInputError, PreconditionError
from services.generation.settings import GenerationSettings
from services.learner.settings import LearnerSettings
from services.planner import memory, split
from services.planner.hardware import GPUS
from services.planner.model import Model, described
from services.planner.simulation import simulate
from services.planner.throughput import Assumptions, Workload, decode_seconds, training_flops, training_seconds

WORK = Workload(groups=64, n=8, prompt_tokens=512, mean_tokens=2048, max_tokens=8192)


@pytest.fixture(scope="module")
def qwen() -> Model:
    return described("qwen3-30b-a3b")


def cluster(model: Model, gpus: int, gpu: str = "h100", **changes: object) -> split.Cluster:
    settings = {"device": "cuda", "precision": "bfloat16", "activation_checkpointing": True}
    made = split.Cluster(
        model=model,
        gpu=GPUS[gpu],
        gpus=gpus,
        work=WORK,
        max_staleness=2,
        tickets=3 * WORK.groups,
        generation=GenerationSettings(),
        learner=LearnerSettings.model_validate(settings),
        trained=None,
        stream_bandwidth=1e9,
        assumed=Assumptions(),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]  # names of fields


def test_every_split_fits_and_uses_only_what_there_is(qwen: Model) -> None:
    asked = cluster(qwen, 64)
    found = list(split.splits(asked))
    assert found
    for one in found:
        assert one.learner_gpus + one.replicas * one.tensor_parallel <= 64
        assert one.learner_gpus % 8 == 0
        assert memory.on("cuda", split.learner_parts(asked, one.learner_gpus)) <= asked.room
        parts = split.generation_parts(asked, one)
        assert min(part.bytes for part in parts) > 0
        assert memory.on("cuda", parts) <= asked.room


def test_only_learners_that_can_be_the_mesh_are_tried(qwen: Model) -> None:
    mesh = {"replicate": 2, "shard": 16}
    learner = LearnerSettings.model_validate(cluster(qwen, 64).learner.model_dump() | {"mesh": mesh})
    found = split.splits(cluster(qwen, 64, "b200", learner=learner))
    assert {one.learner_gpus for one in found} == {32}
    with pytest.raises(InvalidInputError, match="= 32 ranks, and the learner has 15"):
        split.best(cluster(qwen, 16, learner=learner), spread=0.8, steps=1)


def test_the_best_is_as_fast_as_any_that_was_simulated(qwen: Model) -> None:
    asked = cluster(qwen, 64)
    chosen, outcome = split.best(asked, spread=0.8, steps=5)
    alone = simulate(split.system(asked, chosen, 0.8), 5)
    assert alone.seconds == outcome.seconds
    assert chosen in list(split.splits(asked))


def test_what_does_not_fit_is_refused_with_numbers(qwen: Model) -> None:
    with pytest.raises(PreconditionError, match=r"8 x h100 are too few: a learner of 7 .* GiB .*learner\.lora\.rank"):
        split.best(cluster(qwen, 8), spread=0.8, steps=1)
    chosen, _ = split.best(cluster(qwen, 8, trained=200_000_000), spread=0.8, steps=1)
    assert chosen.learner_gpus + chosen.replicas * chosen.tensor_parallel <= 8


def test_faster_gpus_are_never_slower(qwen: Model) -> None:
    h100, b200 = (split.best(cluster(qwen, 64, gpu), spread=0.8, steps=5)[1].seconds for gpu in ("h100", "b200"))
    assert b200 < h100


def test_a_training_step_by_hand(qwen: Model) -> None:
    """Six operations for each active parameter, twelve for each value that attends, a third more for checkpoints."""
    tokens, context = 1000, 100.0
    attended = 48 * 4096
    plain = tokens * (6 * qwen.active_parameters + 12 * attended * context)
    assert training_flops(qwen, tokens, context, checkpointing=False) == pytest.approx(plain)
    assert training_flops(qwen, tokens, context, checkpointing=True) == pytest.approx(plain * 4 / 3)
    one, two = (training_seconds(qwen, GPUS["h100"], gpus, WORK, True, Assumptions(step_seconds=0)) for gpus in (8, 16))
    assert one == pytest.approx(2 * two)


def test_a_decoding_step_by_hand(qwen: Model) -> None:
    """One sequence reads 8 of 128 experts; many read all of them, once, and their caches."""
    gpu, plain = GPUS["h100"], Assumptions(memory_bandwidth=1.0, decode_seconds=0.0)
    dense = qwen.parameters - qwen.routed_parameters
    one = 2 * (dense + qwen.routed_parameters * 8 / 128) / gpu.bandwidth
    assert decode_seconds(qwen, gpu, 1, 1, 0, plain) == pytest.approx(one)
    many = 2 * (qwen.parameters + 128 * 1000 * 49152) / gpu.bandwidth
    assert decode_seconds(qwen, gpu, 1, 128, 1000, plain) == pytest.approx(many, rel=0.01)
    assert decode_seconds(qwen, gpu, 2, 128, 1000, plain) == pytest.approx(many / 2, rel=0.01)
