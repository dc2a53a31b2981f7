"""Meshes: ranks in several dimensions learn what one process does, and go on from what another mesh saved."""

from pathlib import Path

import pytest

from services.learner.distributed.settings import MeshSettings, MeshShape
from services.learner.settings import LearnerSettings
from shared.errors import InvalidInputError
from tests.support.ranked import Case, check

ROUTED = {"algorithm": "rspo", "routing_replay": "r3"}


def test_copies_of_shards_learn_what_one_process_does(tmp_path: Path) -> None:
    check(tmp_path, 4, [Case("copies", "qwen3_moe", ROUTED, {"replicate": 2, "shard": 2}, {"replicate": 4})])


def test_a_mesh_has_all_ranks() -> None:
    assert MeshSettings().over(3) == MeshShape(replicate=1, shard=3)
    assert MeshSettings(replicate=2).over(6) == MeshShape(replicate=2, shard=3)
    assert MeshSettings(replicate=2, expert=4).over(16) == MeshShape(replicate=2, shard=2, expert=4)
    assert MeshSettings(context=2).over(6) == MeshShape(replicate=1, shard=3, context=2)
    for mesh, ranks, product in (({"replicate": 2}, 5, 4), ({"shard": 2}, 1, 2), ({"shard": 4, "expert": 2}, 4, 8)):
        with pytest.raises(InvalidInputError, match=f"= {product} ranks, and the learner has {ranks}; .*processes"):
            MeshSettings.model_validate(mesh).over(ranks)


def test_a_mesh_of_another_number_of_processes_is_refused_with_the_settings() -> None:
    with pytest.raises(
        ValueError, match=r"replicate 3 x shard 1 x expert 1 x context 1 = 3 ranks, and the learner has 4"
    ):
        LearnerSettings.model_validate({"parallel": {"processes": 4}, "mesh": {"replicate": 3}})
