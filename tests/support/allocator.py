"""Prints how much memory a step of a trainer returns, in a process whose malloc nothing else has changed."""

import sys
from pathlib import Path

import psutil
import torch

from tests.support.rollouts import load, random_groups
from tests.support.training import PLAIN, make

_BLOCK = 64 << 10  # bytes: malloc does not ask the system for it alone
_BLOCKS = 8192


def main(folder: Path) -> None:
    """Frees seven of eight blocks between others that stay, and takes a step: the resident bytes before and after."""
    trainer = make(folder, **PLAIN)
    groups = random_groups(load(folder), groups=4, samples=4)
    for _ in range(2):  # after the second it knows what a step takes
        trainer.train_step(groups)
    blocks = [torch.ones(_BLOCK, dtype=torch.uint8) for _ in range(_BLOCKS)]
    kept = blocks[::8]
    del blocks
    process = psutil.Process()
    before = process.memory_info().rss
    trainer.train_step(groups)
    print(before, process.memory_info().rss)
    del kept


if __name__ == "__main__":
    main(Path(sys.argv[1]))
