"""Checkpoints on disk: atomic, verified, and never more than asked for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.learner.checkpoint import MANIFEST, latest, load_latest, save, step_of, verify
from shared.errors import CorruptDataError, PreconditionError, UnavailableError


class Counter:
    """The smallest thing with a state."""

    def __init__(self, step: int = 0, disk: Path | None = None) -> None:
        self.step = step
        self.disk = disk  # in place of the checkpoint's own

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        (folder / "model.safetensors").write_bytes(bytes([self.step]) * 1000)
        ((self.disk or folder) / "state.json").write_text(json.dumps({"step": self.step, "meta": meta}))

    def load(self, folder: Path) -> dict[str, Any]:
        state = json.loads((folder / "state.json").read_text())
        self.step = state["step"]
        meta: dict[str, Any] = state["meta"]
        return meta


def steps(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_the_newest_checkpoint_is_restored_with_its_groups(tmp_path: Path) -> None:
    save(tmp_path, Counter(9), ["a"], keep=3)
    path = save(tmp_path, Counter(10), ["b", "c"], keep=3)
    restored = Counter()
    assert load_latest(tmp_path, restored) == ("b", "c")
    assert restored.step == 10
    assert latest(tmp_path) == path


def test_without_a_checkpoint_nothing_is_restored(tmp_path: Path) -> None:
    restored = Counter(7)
    assert load_latest(tmp_path / "never made", restored) == ()
    assert restored.step == 7


def flip_a_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)


TEARS: dict[str, Callable[[Path], Any]] = {
    "cut short": lambda folder: (folder / "model.safetensors").write_bytes(b"\2" * 100),
    "bit flipped": flip_a_bit,
    "file gone": lambda folder: (folder / "state.json").unlink(),
    "manifest gone": lambda folder: (folder / MANIFEST).unlink(),
    "manifest cut short": lambda folder: (folder / MANIFEST).write_text('{"model'),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(tmp_path: Path, tear: str) -> None:
    save(tmp_path, Counter(1), ["a"], keep=3)
    torn = save(tmp_path, Counter(2), ["b"], keep=3)
    TEARS[tear](torn)
    with pytest.raises(CorruptDataError, match=torn.name):
        verify(torn)
    restored = Counter()
    assert load_latest(tmp_path, restored) == ("a",)
    assert restored.step == 1


def test_a_step_done_again_after_a_torn_checkpoint_is_the_latest(tmp_path: Path) -> None:
    torn = save(tmp_path, Counter(2), ["b"], keep=3)
    flip_a_bit(torn)
    again = save(tmp_path, Counter(2), ["b"], keep=3)
    assert latest(tmp_path) == again != torn


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10, 11):
        save(tmp_path, Counter(step), [], keep=2)
    assert steps(tmp_path) == ["step-00000010-0000", "step-00000011-0000"]


def test_a_second_checkpoint_of_a_step_never_replaces_the_first_in_place(tmp_path: Path) -> None:
    for groups in (["a"], ["a", "b"], ["a", "b", "c"]):
        save(tmp_path, Counter(3), groups, keep=1)
    assert steps(tmp_path) == ["step-00000003-0002"]
    assert load_latest(tmp_path, Counter()) == ("a", "b", "c")


def test_protected_steps_outlive_newer_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, Counter(step), [], keep=2, protected={2, 9})
    assert steps(tmp_path) == [f"step-{step:08d}-0000" for step in (2, 4, 5)]
    assert [step_of(path) for path in sorted(tmp_path.iterdir())] == [2, 4, 5]
    save(tmp_path, Counter(6), [], keep=2, protected={4})
    assert steps(tmp_path) == [f"step-{step:08d}-0000" for step in (4, 5, 6)]


def test_a_disk_that_is_full_is_named_and_nothing_torn_is_left(tmp_path: Path) -> None:
    first = save(tmp_path, Counter(1), ["a"], keep=1)
    full = tmp_path.with_name("full")
    full.mkdir()
    (full / "state.json").symlink_to("/dev/full")
    with pytest.raises(PreconditionError, match=rf"{tmp_path}: No space left on device \(errno 28\); free"):
        save(tmp_path, Counter(2, disk=full), ["b"], keep=1)
    assert steps(tmp_path) == [first.name]
    assert load_latest(tmp_path, Counter()) == ("a",)


def test_a_volume_that_is_gone_is_named(tmp_path: Path) -> None:
    (tmp_path / "volume").write_text("no folder")
    with pytest.raises(PreconditionError, match=r"/volume/checkpoints: Not a directory \(errno 20\)"):
        save(tmp_path / "volume" / "checkpoints", Counter(1), [], keep=1)


def test_what_is_no_fault_of_the_disk_keeps_its_name(tmp_path: Path) -> None:
    """UnavailableError is an OSError too."""

    class Alone(Counter):
        def save(self, folder: Path, meta: dict[str, Any]) -> None:
            raise UnavailableError("rank 1 is gone")

    with pytest.raises(UnavailableError, match="rank 1 is gone"):
        save(tmp_path, Alone(1), [], keep=1)
    assert steps(tmp_path) == []


def test_what_a_crash_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001-0000").mkdir()
    (tmp_path / ".step-00000001-0000" / "model.safetensors").write_bytes(b"half")
    save(tmp_path, Counter(2), [], keep=2)
    assert steps(tmp_path) == ["step-00000002-0000"]
