"""Ranks: payloads and sums between real processes, and that none outlives rank 0 or torchrun."""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from services.learner.distributed.ranks import Ranks
from shared.errors import InvalidInputError, UnavailableError
from tests.support import torchrun

PAYLOADS = [b"", b"\0\xff" * 3, bytes(1_000_000)]


def collectives(ranks: Ranks) -> None:
    for payload in PAYLOADS:
        given = payload if ranks.rank == 0 else None
        assert ranks.broadcast(given) == payload
        assert ranks.command(given) == payload
    assert ranks.scatter(PAYLOADS if ranks.rank == 0 else None) == PAYLOADS[ranks.rank]
    assert ranks.gather(PAYLOADS[-ranks.rank]) == ([PAYLOADS[0], *PAYLOADS[:0:-1]] if ranks.rank == 0 else [])
    value = torch.tensor([[1.5, ranks.rank]])
    torch.testing.assert_close(ranks.sum(value), torch.tensor([[4.5, 3.0]]), rtol=0, atol=0)
    assert value.tolist() == [[1.5, ranks.rank]]
    assert int(ranks.sum(torch.tensor(2**40 + ranks.rank))) == 3 * 2**40 + 3
    assert ranks.mesh.dense.size() == 3


def test_payloads_and_sums_reach_the_ranks_that_they_are_for() -> None:
    torchrun.run(3, collectives)


def test_alone_everything_comes_back() -> None:
    ranks = Ranks.open()
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.broadcast(b"a") == ranks.command(b"a") == ranks.scatter([b"a"]) == b"a"
    assert ranks.gather(b"a") == [b"a"]
    assert ranks.sum(torch.tensor(3)) == 3


def test_a_device_of_one_rank_cannot_be_that_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidInputError, match=r"learner\.device is 'cuda:1', with 2 ranks"):
        Ranks.open("cuda:1")


def idle(ranks: Ranks, folder: str) -> None:
    """Rank 0 is idle for longer than the deadline, then works for longer than the deadline."""
    port = ranks.broadcast(str(torchrun.free_port()).encode())
    ranks.close()
    os.environ["MASTER_PORT"] = port.decode()
    hasty = Ranks.open("cpu", timedelta(seconds=2))
    gave_up = Path(folder, "gave up")
    if hasty.rank == 0:
        time.sleep(4)
        hasty.command(b"work")
        torchrun.until(gave_up.exists)
    else:
        assert hasty.command() == b"work"
        with pytest.raises(UnavailableError, match=r"rank 1 of 2 lost the other .*imed out.*raise learner\.parallel\."):
            hasty.broadcast()
        gave_up.touch()


def test_followers_wait_without_end_for_a_command_and_never_for_its_data(tmp_path: Path) -> None:
    torchrun.run(2, idle, tmp_path)


def abandoned(ranks: Ranks) -> None:
    if ranks.rank == 0:
        ranks.command(b"go")
        os.kill(os.getpid(), signal.SIGKILL)
    ranks.command()
    ranks.command()


def test_followers_end_with_rank_0() -> None:
    with torchrun.started(2, abandoned) as (first, follower):
        _, wrote = follower.communicate(timeout=60)
        assert first.wait(60) == -signal.SIGKILL
        assert follower.returncode == 1
        assert "UnavailableError: rank 1 of 2 lost the other ranks" in wrote


def forever(ranks: Ranks, folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    if ranks.rank == 0:
        time.sleep(600)
    ranks.command()


def test_no_rank_outlives_torchrun(tmp_path: Path) -> None:
    """Its workers have sessions of their own: nothing but the kernel ends them with it."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    ranks = torchrun.command(forever, tmp_path)[1:]
    agent = subprocess.Popen([*launcher, *ranks], cwd=torchrun.ROOT, env=os.environ | torchrun.QUIET)
    try:
        torchrun.until(lambda: len(list(tmp_path.iterdir())) == 2)
    finally:
        agent.kill()
        agent.wait()
    torchrun.until(lambda: not any(Path("/proc", path.name).exists() for path in tmp_path.iterdir()))
