"""Weights over the network, over gloo: between threads, and between processes where one of them is to end."""

import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from shared.errors import CorruptDataError, UnavailableError
from shared.weights import broadcast as transfer
from shared.weights import buckets
from shared.weights.broadcast import LackingError, Sender, decline, receive, send_beside
from tests.support.transfers import CPU, Tensors, changed, outgoing, specs_of

SECONDS = 20.0
# Receives as rank ARGV[3] of ARGV[4], the tensors that a folder names, and writes what came.
RECEIVER = """
import sys
from pathlib import Path
from safetensors.torch import save_file
from shared.weights import broadcast as transfer
from tests.support.transfers import CPU, specs_of, tensors_of
_, port, out, rank, size, folder = sys.argv
rendezvous = transfer.Rendezvous("127.0.0.1", int(port), 1, int(size), 20.0)
save_file(transfer.receive(rendezvous, int(rank), specs_of(tensors_of(Path(folder))), CPU), out)
"""


@pytest.fixture
def tensors(monkeypatch: pytest.MonkeyPatch) -> Tensors:
    """Tensors of many shapes and dtypes: more than one bucket, one larger than a bucket, and a scalar."""
    monkeypatch.setattr(transfer, "_BUCKET_BYTES", 1 << 12)
    torch.manual_seed(0)
    return {
        **{f"a.{i}": torch.randn(i + 1, 33).to(dtype) for i, dtype in enumerate([torch.float32, torch.bfloat16] * 5)},
        "large": torch.randn(3000),
        "odd": torch.arange(7, dtype=torch.uint8),
        "after": torch.tensor(2.5),
    }


def sent(
    sender: Sender, version: Tensors, *, since: Tensors | None = None, bases: Sequence[Tensors] = ()
) -> tuple[set[int], list[Future[dict[str, torch.Tensor]]]]:
    """All take part, each in a thread: what `Sender.send` gives, and what each receiver has or raises."""
    place = sender.rendezvous
    with ThreadPoolExecutor(place.size) as threads:
        for rank in range(1, place.senders):
            threads.submit(send_beside, place, rank, outgoing(version, rank, place.senders, since=since), CPU)
        received = [
            threads.submit(receive, place, rank, specs_of(version), CPU, bases[i] if bases else None)
            for i, rank in enumerate(range(place.senders, place.size))
        ]
        return sender.send(outgoing(version, 0, place.senders, since=since)), received


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("senders", [1, 3])
def test_every_worker_gets_every_tensor_bit_for_bit(tensors: Tensors, senders: int) -> None:
    refused, received = sent(Sender("127.0.0.1", 2, SECONDS, CPU, senders), tensors)
    assert refused == set()
    for each in received:
        assert_same(each.result(), tensors)


@pytest.mark.parametrize("senders", [1, 3])
def test_what_changed_makes_the_version_of_the_one_before(tensors: Tensors, senders: int) -> None:
    new = changed(tensors, 0.02)
    parts = [outgoing(new, rank, senders, since=tensors) for rank in range(senders)]
    whole = sum(tensor.nbytes for tensor in new.values())
    assert 0 < sum(part.nbytes for part in parts) < 0.1 * whole
    sender = Sender("127.0.0.1", 2, SECONDS, CPU, senders, base=3)
    refused, received = sent(sender, new, since=tensors, bases=(tensors, tensors))
    assert refused == set()
    for each in received:
        assert_same(each.result(), new)


def test_rows_that_changed_too_much_are_sent_whole_among_others(tensors: Tensors) -> None:
    new = {**changed(tensors, 0.01), "large": tensors["large"] + 1}
    sends = outgoing(new, since=tensors)
    assert "large" not in {rows.name for rows in sends.changes}
    assert sends.nbytes < sum(tensor.nbytes for tensor in new.values())
    _, received = sent(Sender("127.0.0.1", 1, SECONDS, CPU, base=3), new, since=tensors, bases=(tensors,))
    assert_same(received[0].result(), new)


def test_changes_of_other_weights_are_an_error_for_that_worker_alone_and_known_to_the_learner(tensors: Tensors) -> None:
    new, other = changed(tensors, 0.02), changed(tensors, 0.3)
    sender = Sender("127.0.0.1", 2, SECONDS, CPU, 2, base=3)
    refused, received = sent(sender, new, since=tensors, bases=(tensors, other))
    assert refused == {3}
    assert_same(received[0].result(), new)
    with pytest.raises(CorruptDataError, match="made of version 3 and what changed since, has another SHA-256"):
        received[1].result()


def test_a_worker_that_lacks_the_version_before_keeps_anything_from_being_sent(tensors: Tensors) -> None:
    sender = Sender("127.0.0.1", 2, SECONDS, CPU, base=3)
    with ThreadPoolExecutor(1) as threads:
        waits = threads.submit(receive, sender.rendezvous, 1, specs_of(tensors), CPU, tensors)
        decline(sender.rendezvous, [2])
        with pytest.raises(LackingError) as error:
            sender.send(outgoing(tensors, since=tensors))
        assert error.value.ranks == {2}
        with pytest.raises(UnavailableError, match="was called off"):
            waits.result()


def test_rows_that_nobody_sends_are_noticed(tensors: Tensors) -> None:
    few = {name: tensor for name, tensor in tensors.items() if name != "odd"}
    sender = Sender("127.0.0.1", 1, SECONDS, CPU)
    with ThreadPoolExecutor(1) as threads:
        received = threads.submit(receive, sender.rendezvous, 1, specs_of(tensors), CPU)
        assert sender.send(outgoing(few)) == {1}
        with pytest.raises(CorruptDataError, match="7 bytes less than the version has"):
            received.result()


def test_a_worker_that_does_not_come_is_an_error_at_the_deadline(tensors: Tensors) -> None:
    with pytest.raises(UnavailableError, match="not sent to all 1 workers"):
        Sender("127.0.0.1", 1, 1.0, CPU).send(outgoing(tensors))


def test_a_learner_that_stands_still_is_an_error_for_the_worker(tensors: Tensors) -> None:
    sender = Sender("127.0.0.1", 1, 1.0, CPU)  # which does not send
    with pytest.raises(UnavailableError, match="did not arrive"):
        receive(sender.rendezvous, 1, specs_of(tensors), CPU)


def start(sender: Sender, tensors: Tensors, rank: int, out: Path) -> subprocess.Popen[str]:
    folder = out.parent / f"names-{rank}"
    folder.mkdir()
    save_file(dict(tensors), folder / "model.safetensors")
    arguments = [str(part) for part in (sender.rendezvous.port, out, rank, sender.rendezvous.size, folder)]
    return subprocess.Popen([sys.executable, "-c", RECEIVER, *arguments], text=True, stderr=subprocess.PIPE)


def test_a_worker_that_dies_on_the_way_is_an_error_for_all(tensors: Tensors, tmp_path: Path) -> None:
    sender = Sender("127.0.0.1", 2, 3.0, CPU)
    alive = start(sender, tensors, 1, tmp_path / "1")
    with pytest.raises(UnavailableError):
        sender.send(outgoing(tensors))
    assert alive.wait(20) != 0
    assert not (tmp_path / "1").exists()


def test_a_rank_of_the_learner_that_does_not_come_is_an_error_for_all(tensors: Tensors) -> None:
    sender = Sender("127.0.0.1", 1, 1.0, CPU, senders=2)
    with ThreadPoolExecutor(1) as threads:
        received = threads.submit(receive, sender.rendezvous, 2, specs_of(tensors), CPU)
        with pytest.raises(UnavailableError, match="while 1 had not come"):
            sender.send(outgoing(tensors, 0, 2))
        with pytest.raises(UnavailableError):
            received.result()


def test_a_worker_that_dies_while_all_connect_is_noticed_soon(
    tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "_JOIN_SECONDS", 1.0)
    sender = Sender("127.0.0.1", 1, 600.0, CPU)

    def come_and_go() -> None:
        store = dist.TCPStore("127.0.0.1", sender.rendezvous.port, is_master=False)  # type: ignore[attr-defined]
        store.set(transfer._HERE.format(1), "")
        store.get(transfer._WAY)

    worker = threading.Thread(target=come_and_go)
    worker.start()
    with pytest.raises(UnavailableError, match="not sent to all 1 workers"):
        sender.send(outgoing(tensors))
    worker.join()


def test_what_is_slow_to_arrive_may_take_longer_than_connecting(
    tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "_JOIN_SECONDS", 0.5)
    broadcast, us, slow = buckets.Group.broadcast, threading.current_thread(), [0.8]

    def slowly(*arguments: Any) -> None:
        if threading.current_thread() is us and slow:
            time.sleep(slow.pop())
        broadcast(*arguments)

    monkeypatch.setattr(buckets.Group, "broadcast", slowly)
    _, received = sent(Sender("127.0.0.1", 1, 60.0, CPU), tensors)
    assert not slow
    assert_same(received[0].result(), tensors)


def test_a_rendezvous_that_is_called_off_sends_those_home_who_have_come(
    tensors: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "_LOOK_SECONDS", 60.0)  # it comes between two looks
    sender = Sender("127.0.0.1", 2, 60.0, CPU)

    def call_off() -> None:
        sender._store.wait([transfer._HERE.format(1)])
        sender.call_off()

    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(2))
        early = threads.submit(receive, sender.rendezvous, 1, specs_of(tensors), CPU)
        threads.submit(call_off)
        with pytest.raises(UnavailableError, match="the rendezvous was called off while 1 had not come"):
            sender.send(outgoing(tensors))
        with pytest.raises(UnavailableError, match="was called off: not all had come"):
            early.result()


def test_who_comes_too_late_is_told_at_once(tensors: Tensors) -> None:
    rendezvous = Sender("127.0.0.1", 1, 600.0, CPU).rendezvous  # nobody holds the sender
    with pytest.raises(UnavailableError, match="is over"):
        receive(rendezvous, 1, specs_of(tensors), CPU)


def test_a_host_that_is_not_this_machine_is_an_error() -> None:
    with pytest.raises(UnavailableError, match=r"no rendezvous can be opened at 192\.0\.2\.1"):
        Sender("192.0.2.1", 1, 0.5, CPU)
