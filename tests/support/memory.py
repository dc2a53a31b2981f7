"""Resident memory of a process, and a model among ranks to measure it with."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from services.learner.distributed.fsdp import shard
from services.learner.distributed.ranks import Ranks
from services.learner.model.policy import Policy
from services.learner.model.source import Source
from services.learner.settings import LoraSettings
from shared.process.allocator import return_freed_memory
from shared.settings import RolloutSettings, RunSettings
from tests.support.settings import learner_settings

T = TypeVar("T")


def growth(work: Callable[[], T]) -> tuple[T, int]:
    """What it gives, and the most bytes of resident memory meanwhile on top of those before."""
    return_freed_memory()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _peak()
    made = work()
    return made, _peak() - before


def place_policy(ranks: Ranks, folder: Path) -> Policy:
    """Without the passes that try a model out, which gather its layers again."""
    policy = Policy(learner_settings(algorithm="gmpo"), RunSettings(model=folder), RolloutSettings(), ranks)
    shard(policy.model, ranks, source=Source(folder, LoraSettings(), 0))
    return policy


def _peak() -> int:
    """Bytes of resident memory of this process at its highest."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
