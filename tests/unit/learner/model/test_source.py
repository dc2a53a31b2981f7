"""Loading among several ranks: none of them ever has the whole model in memory."""

import json
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.tensor import DTensor

from services.learner.distributed.agreement import check_same_model
from services.learner.distributed.fsdp import shard
from services.learner.distributed.ranks import Ranks
from services.learner.model.policy import Policy
from services.learner.model.source import Source
from services.learner.settings import LoraSettings
from shared.errors import InvalidInputError
from shared.process.allocator import return_freed_memory
from shared.settings import RolloutSettings, RunSettings
from tests.support import torchrun
from tests.support.models import save_model
from tests.support.settings import learner_settings

LAYERS = 12


def part(ranks: Ranks, folder: str) -> None:
    """Leaves the most memory that this rank had on top of what it began with, and its part of the weights, in bytes."""
    place_policy(ranks, Path(folder, "small"))  # imports take memory, once
    return_freed_memory()
    ranks.broadcast(b"begun")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak()
    model = place_policy(ranks, Path(folder, "model")).model
    held = sum(p.to_local().nbytes for p in model.parameters() if isinstance(p, DTensor))
    Path(folder, f"{ranks.rank}.json").write_text(json.dumps([peak() - before, held]))
    check_same_model(ranks, Path(folder, "model"))
    if ranks.rank:
        check_same_model(ranks, Path(folder, "model"))
        return
    with pytest.raises(InvalidInputError, match="not the same model for ranks 1 as for rank 0"):
        check_same_model(ranks, Path(folder, "small"))


def place_policy(ranks: Ranks, folder: Path) -> Policy:
    """Without the passes that try a model out, which gather its layers again."""
    policy = Policy(learner_settings(algorithm="gmpo"), RunSettings(model=folder), RolloutSettings(), ranks)
    shard(policy.model, ranks, source=Source(folder, LoraSettings(), 0))
    return policy


def peak() -> int:
    """Bytes of resident memory of this process at its highest."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))


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
