"""Weights over the network, between real processes over gloo."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from shared.errors import CorruptDataError, UnavailableError
from shared.weights import broadcast as transfer
from shared.weights.broadcast import Sender, receive, specs_of
from shared.weights.rendezvous import TensorSpec

CPU = torch.device("cpu")
# Receives as rank ARGV[3] of ARGV[4] and writes what came.
RECEIVER = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from shared.weights import broadcast as transfer
_, port, out, rank, size, source = sys.argv
rendezvous = transfer.Rendezvous("127.0.0.1", int(port), int(size), 20.0)
specs = transfer.specs_of(sorted(Path(source).glob("*.safetensors")))
save_file(transfer.receive(rendezvous, int(rank), specs, torch.device("cpu")), out)
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two shards of many shapes and dtypes: more than one bucket, one tensor larger than a bucket, and a scalar."""
    monkeypatch.setattr(transfer, "_BUCKET_BYTES", 1 << 12)
    folder = tmp_path / "weights"
    folder.mkdir()
    shards: list[dict[str, torch.Tensor]] = [
        {f"a.{i}": torch.randn(i + 1, 33).to(dtype) for i, dtype in enumerate([torch.float32, torch.bfloat16] * 5)},
        {"large": torch.randn(3000), "odd": torch.arange(7, dtype=torch.uint8), "after": torch.tensor(2.5)},
    ]
    for i, shard in enumerate(shards):
        save_file(shard, folder / f"model-{i}.safetensors")
    return sorted(folder.iterdir())


def start(sender: Sender, files: list[Path], rank: int, out: Path) -> subprocess.Popen[str]:
    arguments = [str(part) for part in (sender.rendezvous.port, out, rank, sender.rendezvous.size, files[0].parent)]
    command = [sys.executable, "-c", RECEIVER, *arguments]
    return subprocess.Popen(command, text=True, stderr=subprocess.PIPE)


def test_every_worker_gets_every_tensor_bit_for_bit(files: list[Path], tmp_path: Path) -> None:
    sender = Sender("127.0.0.1", 2, 20.0, CPU)
    received = [tmp_path / f"{rank}.safetensors" for rank in (1, 2)]
    workers = [start(sender, files, rank, out) for rank, out in enumerate(received, 1)]
    sender.send(files)
    assert [worker.wait(20) for worker in workers] == [0, 0]
    expected = {name: tensor for file in files for name, tensor in load_file(file).items()}
    for out in received:
        found = load_file(out)
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        assert all(found[name].dtype == tensor.dtype for name, tensor in expected.items())


def test_a_worker_that_does_not_come_is_an_error_at_the_deadline(files: list[Path]) -> None:
    with pytest.raises(UnavailableError, match="not sent to all 1 workers"):
        Sender("127.0.0.1", 1, 1.0, CPU).send(files)


def test_a_learner_that_stands_still_is_an_error_for_the_worker(files: list[Path]) -> None:
    sender = Sender("127.0.0.1", 1, 1.0, CPU)  # which does not send
    rendezvous = sender.rendezvous
    with pytest.raises(UnavailableError, match="did not arrive"):
        receive(rendezvous, 1, specs_of(files), CPU)


def test_a_worker_that_dies_on_the_way_is_an_error_for_the_learner(files: list[Path], tmp_path: Path) -> None:
    sender = Sender("127.0.0.1", 2, 3.0, CPU)
    alive = start(sender, files, 1, tmp_path / "1")
    with pytest.raises(UnavailableError):
        sender.send(files)
    assert alive.wait(20) != 0
    assert not (tmp_path / "1").exists()


def test_a_worker_that_dies_while_all_connect_is_noticed_soon(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_JOIN_SECONDS", 1.0)
    sender = Sender("127.0.0.1", 1, 600.0, CPU)

    def come_and_go() -> None:
        store = dist.TCPStore("127.0.0.1", sender.rendezvous.port, is_master=False)  # type: ignore[attr-defined]
        store.set(transfer._HERE.format(1), "")
        store.get(transfer._WAY)

    worker = threading.Thread(target=come_and_go)
    worker.start()
    with pytest.raises(UnavailableError, match="not sent to all 1 workers"):
        sender.send(files)
    worker.join()


def test_what_is_slow_to_arrive_may_take_longer_than_connecting(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_JOIN_SECONDS", 0.5)
    sender, specs = Sender("127.0.0.1", 1, 60.0, CPU), specs_of(files)
    broadcast, us = transfer._broadcast, threading.current_thread()

    def slowly(*arguments: Any) -> None:
        if threading.current_thread() is us:
            time.sleep(0.8)
        broadcast(*arguments)

    monkeypatch.setattr(transfer, "_broadcast", slowly)
    with ThreadPoolExecutor(1) as threads:
        arrived = threads.submit(receive, sender.rendezvous, 1, specs, CPU)
        sender.send(files)
        assert arrived.result(20).keys() == {spec.name for spec in specs}


def test_specs_say_what_the_files_hold(files: list[Path], tmp_path: Path) -> None:
    assert TensorSpec("large", "F32", (3000,)) in specs_of(files)
    assert TensorSpec("after", "F32", ()) in specs_of(files)
    save_file({"mask": torch.ones(3, dtype=torch.bool)}, tmp_path / "x.safetensors")
    with pytest.raises(CorruptDataError, match=r"mask in .* is of dtype BOOL"):
        specs_of([tmp_path / "x.safetensors"])


def test_a_rendezvous_that_is_called_off_sends_those_home_who_have_come(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_LOOK_SECONDS", 60.0)  # it comes between two looks
    sender = Sender("127.0.0.1", 2, 60.0, CPU)
    early = start(sender, files, 1, tmp_path / "1")

    def call_off() -> None:
        sender._store.wait([transfer._HERE.format(1)])
        sender.call_off()

    caller = threading.Thread(target=call_off)
    caller.start()
    with pytest.raises(UnavailableError, match="the rendezvous was called off while 1 had not come"):
        sender.send(files)
    caller.join()
    assert early.wait(20) != 0
    assert early.stderr is not None
    assert "was called off: not all had come" in early.stderr.read()


def test_who_comes_too_late_is_told_at_once(files: list[Path]) -> None:
    rendezvous = Sender("127.0.0.1", 1, 600.0, CPU).rendezvous  # nobody holds the sender
    with pytest.raises(UnavailableError, match="is over"):
        receive(rendezvous, 1, specs_of(files), CPU)


def test_a_host_that_is_not_this_machine_is_an_error() -> None:
    with pytest.raises(UnavailableError, match=r"no rendezvous can be opened at 192\.0\.2\.1"):
        Sender("192.0.2.1", 1, 0.5, CPU)
