"""Two ranks send a version to a worker, and write its files: exact, and nobody has more in memory than its part."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from services.learner.checkpointing.sending import Sending
from services.learner.distributed.ranks import Ranks
from services.learner.model import export
from shared.weights import broadcast
from tests.support import torchrun
from tests.support.memory import growth, place_policy
from tests.support.models import save_model
from tests.support.settings import learner_settings

_MB = 1 << 20
BUCKET, FILE = 4 * _MB, 16 * _MB
# Receives as the only worker, and writes what came and the most memory that it had on top of what it began with.
RECEIVER = """
import json, sys
from pathlib import Path
from safetensors.torch import save_file
from shared.weights.broadcast import receive
from shared.weights.rendezvous import Rendezvous, TensorSpec
from tests.support.transfers import CPU
from tests.support.memory import growth
order, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
specs = [TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in order["specs"]]
tensors, most = growth(lambda: receive(Rendezvous(**order["rendezvous"]), 2, specs, CPU))
save_file(tensors, folder / "received.safetensors")
(folder / "worker.json").write_text(json.dumps(most))
"""


def part(ranks: Ranks, folder: str) -> None:
    """Leaves the most memory that each of its parts took on this rank."""
    broadcast._BUCKET_BYTES, export._FILE_BYTES = BUCKET, FILE
    root = Path(folder)
    place_policy(ranks, root / "small").export(root / "nothing")  # imports take memory, once
    policy = place_policy(ranks, root / "model")
    sending = Sending(policy.parts(), ranks, learner_settings(), keeps_changes=False)
    _, taken = growth(sending.take)
    if ranks.rank:
        _, sent = growth(sending.follow)
    else:
        sender = sending.open(1, None)
        order = {"rendezvous": asdict(sender.rendezvous), "specs": [asdict(spec) for spec in sending.specs]}
        worker = subprocess.Popen([sys.executable, "-c", RECEIVER, json.dumps(order), folder])
        refused, sent = growth(lambda: sending.send(sender))
        assert (refused, worker.wait(60)) == (set(), 0)
        sending.close()
    (root / "exported").mkdir(exist_ok=True)
    _, exported = growth(lambda: policy.export(root / "exported"))
    (root / f"{ranks.rank}.json").write_text(json.dumps([taken, sent, exported]))


def test_a_version_goes_from_two_ranks_to_a_worker_and_nobody_has_more_than_its_part(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"num_hidden_layers": 12, "num_experts": 32, "moe_intermediate_size": 384}
    folder = save_model(tmp_path / "model", **changes)
    whole = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert whole > 100 * _MB
    save_model(tmp_path / "small")
    (tmp_path / "nothing").mkdir()
    torchrun.run(2, part, tmp_path)
    for rank in range(2):
        taken, sent, exported = json.loads((tmp_path / f"{rank}.json").read_text())
        assert 0.45 * whole < taken < 0.6 * whole, rank  # the copy of its half that is sent from
        assert sent < 4 * BUCKET, rank
        assert exported < 0.5 * whole, rank
    assert 0.95 * whole < json.loads((tmp_path / "worker.json").read_text()) < 1.15 * whole
    files = sorted((tmp_path / "exported").glob("*.safetensors"))
    assert len(files) > 3
    found = {name: tensor for file in files for name, tensor in load_file(file).items()}
    expected, received = load_file(folder / "model.safetensors"), load_file(tmp_path / "received.safetensors")
    assert found.keys() == received.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert torch.equal(received[name], tensor), name
