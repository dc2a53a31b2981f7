"""Ranks that read their own rows from a payload store learn what they learn from rows that rank 0 sends."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from routershift.algorithms.aggregation import Totals
from services.learner.data.batch import Group, MicroBatch, Weighted
from services.learner.data.messages import decode_group, without_arrays
from services.learner.data.shares import Share, decode, encode
from services.learner.distributed.ranks import Ranks
from services.learner.trainer import Trainer
from shared.errors import CorruptDataError
from shared.payloads.arrays import detach
from shared.payloads.bulk import Bulk
from shared.payloads.store import new_key
from shared.settings import RolloutSettings, RunSettings
from shared.streams.entries import Entry
from tests.support import torchrun
from tests.support.entries import message
from tests.support.models import save_model
from tests.support.payloads import bulk
from tests.support.ranked import Shared
from tests.support.rollouts import load, perturbed, random_episodes
from tests.support.settings import learner_settings

# Several passes for each update, and each sample twice.
COMMON: dict[str, Any] = {
    "algorithm": "rspo",
    "optimizer__learning_rate": 1e-4,
    "minibatches": 2,
    "micro_batch_tokens": 60,
    "epochs": 2,
    "turn_advantages": True,
}
STEPS = 2


def groups(folder: Path) -> list[Group]:
    return random_episodes(perturbed(load(folder / "model"), 0.005), groups=4, samples=4)


def stored(group: Group, index: int, store: Bulk) -> Group:
    """The group as rank 0 keeps it where its arrays lie in the store: checked, and then let go."""
    made, key = message(group, index), new_key("prompts", f"{index}-0")
    envelope, parts = detach(made, key)
    store.store.put(key, parts)
    entry = Entry("1-0", group.group_id, len(made.trajectories), envelope.SerializeToString(), 1, reference=key)
    return without_arrays(decode_group(entry, store)).group


def part(ranks: Ranks, folder: str) -> None:
    ranks.__class__ = Shared
    root, run = Path(folder), RunSettings(model=Path(folder) / "model", steps=STEPS)
    store = bulk(root / "payloads")
    for way in ("sent", "read", "mixed", "divided"):
        settings = learner_settings(**COMMON, mesh={"context": 2}) if way == "divided" else learner_settings(**COMMON)
        trainer = Trainer(settings, run, RolloutSettings(), ranks, store)
        if ranks.rank:
            trainer.follow()
            continue
        batch = groups(root)
        if way != "sent":  # of the mixed ones the last was sampled before the store was chosen
            read = 3 if way == "mixed" else 4
            batch[:read] = [stored(group, i, store) for i, group in enumerate(batch[:read])]
            assert all(s.completion.router_trace is None for group in batch[:3] for s in group.samples)
        report, *_ = [trainer.train_step(batch, kept=[1]) for _ in range(STEPS)]
        assert sorted(report.kept) == [(1, i) for i in range(4)]
        (root / way).mkdir()
        trainer.export_weights(root / way)
        trainer.close()
    ranks.__class__ = Ranks


def test_ranks_learn_the_same_from_rows_that_they_read_themselves(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    torchrun.run(2, part, tmp_path)
    ways = ("sent", "read", "mixed", "divided")
    sent, read, mixed, divided = (load_file(tmp_path / way / "model.safetensors") for way in ways)
    before = load_file(tmp_path / "model" / "model.safetensors")
    assert all(torch.equal(sent[name], each[name]) for each in (read, mixed) for name in sent)
    assert any(not torch.equal(sent[name], before[name]) for name in sent)
    for name, tensor in sent.items():  # both ranks read all rows, and each computes half of their tokens
        torch.testing.assert_close(divided[name], tensor, rtol=0, atol=1e-5)


def test_what_only_lengths_are_left_of_keeps_all_that_a_plan_looks_at(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    whole = groups(tmp_path)[0]
    light = stored(whole, 0, bulk(tmp_path / "payloads"))
    for ours, theirs in zip(light.samples, whole.samples, strict=True):
        assert ours.input_tokens == theirs.input_tokens
        assert ours.completion.token_ids.size == theirs.completion.token_ids.size
        assert [(t.tokens, t.reward) for t in ours.trajectory.turns] == [
            (t.tokens, t.reward) for t in theirs.trajectory.turns
        ]
        assert ours.completion.token_ids.strides == (0,)  # no memory for each token


def test_a_rank_finds_rows_that_were_damaged_since_they_were_checked(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    store = bulk(tmp_path / "payloads")
    light = stored(groups(tmp_path)[0], 0, store)
    share = Share(Totals(1, 1, 1), (MicroBatch(((Weighted(light.samples[0], (1.0,)),),)),), keeps=True)
    (again,) = decode(encode([share]), store.read)
    assert again.passes[0].samples[0].sample.completion.router_trace is not None
    (file,) = (path for path in (tmp_path / "payloads").iterdir() if path.name != "payload-store")
    file.write_bytes(b"\1" + file.read_bytes()[1:])
    with pytest.raises(CorruptDataError, match="CRC-32"):
        decode(encode([share]), store.read)
