"""Loading among several ranks: none of them ever has the whole model in memory."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.tensor import DTensor

from services.learner.distributed.agreement import check_same_model
from services.learner.distributed.ranks import Ranks
from shared.errors import InvalidInputError
from tests.support import torchrun
from tests.support.memory import growth, place_policy
from tests.support.models import save_model

LAYERS = 12


def part(ranks: Ranks, folder: str) -> None:
    """Leaves the most memory that this rank had on top of what it began with, and its part of the weights, in bytes."""
    place_policy(ranks, Path(folder, "small"))  # imports take memory, once
    ranks.broadcast(b"begun")
    policy, most = growth(lambda: place_policy(ranks, Path(folder, "model")))
    held = sum(p.to_local().nbytes for p in policy.model.parameters() if isinstance(p, DTensor))
    Path(folder, f"{ranks.rank}.json").write_text(json.dumps([most, held]))
    check_same_model(ranks, Path(folder, "model"))
    if ranks.rank:
        check_same_model(ranks, Path(folder, "model"))
        return
    with pytest.raises(InvalidInputError, match="not the same model for ranks 1 as for rank 0"):
        check_same_model(ranks, Path(folder, "small"))


def test_no_rank_has_the_whole_model(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"num_hidden_layers": LAYERS, "num_experts": 32, "moe_intermediate_size": 384}
    folder = save_model(tmp_path / "model", **changes)
    whole = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert whole > 100 << 20
    save_model(tmp_path / "small")
    torchrun.run(2, part, tmp_path)
    for rank in range(2):
        most, held = json.loads((tmp_path / f"{rank}.json").read_text())
        assert held == pytest.approx(whole / 2, rel=0.02)
        assert held < most < 0.8 * whole, rank
