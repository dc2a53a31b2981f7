"""The same training in one process and on several ranks, and what is compared of the two."""

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from services.learner.checkpointing.snapshot import Snapshot
from services.learner.data.batch import Group
from services.learner.distributed.ranks import Ranks
from services.learner.trainer import Trainer
from shared.settings import RolloutSettings, RunSettings
from tests.support import torchrun
from tests.support.models import save_model
from tests.support.rollouts import load, perturbed, random_episodes, random_groups
from tests.support.settings import learner_settings

STEPS, SAVED_AT = 5, 2
# Several passes for each update, in numbers that ranks do not divide, several chunks of logits in each pass, and
# gradients that are clipped.
COMMON: dict[str, Any] = {
    "optimizer__learning_rate": 1e-4,
    "minibatches": 2,
    "micro_batch_tokens": 40,
    "head_chunk_bytes": 2_000,
    "optimizer__max_grad_norm": 0.1,
}


@dataclass(frozen=True)
class Case:
    name: str
    kind: str  # of the model
    settings: dict[str, Any]  # of the table [learner], by keyword
    mesh: dict[str, int] = field(default_factory=dict)  # of the ranks that learn
    other: dict[str, int] = field(default_factory=dict)  # of those that load what was saved
    episodes: bool = False


class Shared(Ranks):
    """One group for one trainer after the other, which do not close it."""

    def close(self) -> None:
        pass


def check(folder: Path, size: int, cases: Sequence[Case]) -> None:
    """Raises AssertionError where ranks learn something else than one process does, or go on from something else.

    Args:
        folder: an empty one.
    """
    for kind in {case.kind for case in cases}:
        save_model(folder / kind, kind)
    for case in cases:
        trainer = _make(folder, case)
        _learn(trainer, folder, case, folder / case.name / "one")
        _save_gradients(trainer, folder / case.name / "one")
        trainer.close()
    torchrun.run(size, part, folder, json.dumps([asdict(case) for case in cases]))
    for case in cases:
        one, several, resumed = (folder / case.name / name for name in ("one", "several", "resumed"))
        _compare_diagnostics(several, one)
        _assert_same(several / "tokens.safetensors", one / "tokens.safetensors", 2e-4)
        _assert_same(several / "gradients.safetensors", one / "gradients.safetensors", 1e-5)
        _assert_same(several / "model.safetensors", one / "model.safetensors", 1e-5)
        _assert_rows_make(several / "model.safetensors", [several / f"rows-{rank}" for rank in range(size)])
        for by in (one, several):
            _assert_same(folder / case.name / f"other of {by.name}/model.safetensors", by / "then/model.safetensors", 0)

        fewer = _make(folder, case)
        assert fewer.load(several / "saved") == {"groups": ["a"]}
        _learn(fewer, folder, case, resumed)
        fewer.close()
        _assert_same(resumed / "model.safetensors", several / "model.safetensors", 1e-5)


def part(ranks: Ranks, folder: str, cases: str) -> None:
    """What several ranks do: they learn, and load what was saved, by one process and by them, in another mesh."""
    ranks.__class__ = Shared
    for case in (Case(**values) for values in json.loads(cases)):
        root = Path(folder, case.name)
        trainer = _make(Path(folder), case, ranks, case.mesh)
        if ranks.rank == 0:
            _learn(trainer, Path(folder), case, root / "several")
            trainer.close()
        else:
            trainer.follow()
        _save_gradients(trainer, root / "several", ranks.rank == 0)
        sent = {f"{rows.first} {rows.name}": tensor for rows, tensor in trainer._policy.parts().rows()}
        save_file(sent, root / "several" / f"rows-{ranks.rank}")
        other = _make(Path(folder), case, ranks, case.other)
        if ranks.rank:
            other.follow()
            continue
        for by in ("one", "several"):
            assert other.load(root / by / "saved") == {"groups": ["a"]}
            assert other.step == SAVED_AT
            (root / f"other of {by}").mkdir()
            other.export_weights(root / f"other of {by}")
        other.close()
    ranks.__class__ = Ranks


def _make(folder: Path, case: Case, ranks: Ranks | None = None, mesh: Mapping[str, int] | None = None) -> Trainer:
    settings = learner_settings(**COMMON | case.settings, mesh=dict(mesh or {}))
    return Trainer(settings, RunSettings(model=folder / case.kind, steps=STEPS), RolloutSettings(), ranks)


def _batches(folder: Path, case: Case) -> list[list[Group]]:
    """Sampled by other weights. The third batch is two responses: three ranks have not one pass each."""
    make_groups = random_episodes if case.episodes else random_groups
    groups = make_groups(perturbed(load(folder / case.kind), 0.005), groups=5, samples=3)
    few = [replace(groups[0], samples=groups[0].samples[:2])]
    return [few if step == 2 else groups for step in range(STEPS)]


def _learn(trainer: Trainer, folder: Path, case: Case, out: Path) -> None:
    """From wherever the trainer stands to the last step; leaves losses, tokens, a checkpoint on the way and exports."""
    out.mkdir(parents=True)
    losses, tokens = {}, {}
    pool, writing = ThreadPoolExecutor(1), None
    for batch in _batches(folder, case)[trainer.step :]:
        report = trainer.train_step(batch, range(len(batch)))
        losses[trainer.step] = dict(report.diagnostics)
        for place, kept in report.kept.items():
            for name in ("logprobs", "log_gamma", "drift"):
                if (values := getattr(kept, name)) is not None:
                    tokens[f"{trainer.step} {place} {name}"] = torch.tensor(values)
        if trainer.step == SAVED_AT:
            (out / "saved").mkdir()
            writing = pool.submit(_write, trainer.snapshot({"groups": ["a"]}), out / "saved")
            (out / "then").mkdir()
            trainer.export_weights(out / "then")
    trainer.export_weights(out)
    if writing:
        writing.result()
    save_file(tokens, out / "tokens.safetensors")
    (out / "diagnostics.json").write_text(json.dumps(losses))


def _write(snapshot: Snapshot, folder: Path) -> None:
    """In a thread, while the next step trains."""
    with closing(snapshot):
        snapshot.write(folder)


def _save_gradients(trainer: Trainer, out: Path, writes: bool = True) -> None:
    """Those of the last update, clipped. Collective."""
    found = {name: p.grad for name, p in trainer._parameters.items() if p.grad is not None}
    whole = {name: grad.full_tensor() if isinstance(grad, DTensor) else grad for name, grad in found.items()}
    if writes:
        save_file(whole, out / "gradients.safetensors")


def _compare_diagnostics(several: Path, one: Path) -> None:
    found, expected = (json.loads((out / "diagnostics.json").read_text()) for out in (several, one))
    assert list(found) == list(expected) == [str(step + 1) for step in range(STEPS)]
    for step, values in expected.items():
        assert found[step] == pytest.approx(values, rel=1e-4, abs=1e-5), (several, step)
        assert found[step]["loss"] == pytest.approx(values["loss"], abs=1e-5), (several, step)


def _assert_rows_make(whole: Path, parts: Sequence[Path]) -> None:
    """What the ranks send is what is exported: each row once. Merged by rows, LoRA rounds as it likes."""
    found: dict[str, dict[int, torch.Tensor]] = {}
    for part in parts:
        for place, tensor in load_file(part).items():
            first, _, name = place.partition(" ")
            assert int(first) not in found.setdefault(name, {}), f"{part}: {name} again"
            found[name][int(first)] = tensor
    expected = load_file(whole)
    assert found.keys() == expected.keys()
    for name, rows in found.items():
        tensors = [tensor for _, tensor in sorted(rows.items())]
        made = torch.cat(tensors) if expected[name].ndim else tensors[0]
        torch.testing.assert_close(made, expected[name], rtol=0, atol=1e-6, msg=f"{whole}: {name}")


def _assert_same(found: Path, expected: Path, atol: float) -> None:
    ours, theirs = load_file(found), load_file(expected)
    assert ours.keys() == theirs.keys()
    assert ours
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=atol, equal_nan=True, msg=f"{found}: {name}")
