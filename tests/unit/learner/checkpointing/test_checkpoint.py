"""Checkpoints on disk: atomic, verified, and never more than asked for."""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from services.learner.checkpointing import checkpoint
from services.learner.checkpointing.checkpoint import (
    MANIFEST,
    TRAINED,
    Files,
    list_trained,
    load_latest,
    remove_old,
    step_of,
    trained_groups,
    verify,
)
from shared.errors import CorruptDataError, UnavailableError


class Counted:
    """A snapshot of a counter."""

    def __init__(self, step: int, meta: dict[str, Any], disk: Path | None) -> None:
        self._step = step
        self._meta = meta
        self._disk = disk

    def write(self, folder: Path) -> Files:
        data = bytes([self._step]) * 1000
        (folder / "model.safetensors").write_bytes(data)
        ((self._disk or folder) / "state.json").write_text(json.dumps({"step": self._step, "meta": self._meta}))
        return {"model.safetensors": {"size": 1000, "sha256": hashlib.sha256(data).hexdigest()}}

    def close(self) -> None:
        pass


class Counter:
    """The smallest thing with a state."""

    def __init__(self, step: int = 0, disk: Path | None = None) -> None:
        self.step = step
        self.disk = disk  # in place of the checkpoint's own

    def snapshot(self, meta: dict[str, Any]) -> Counted:
        return Counted(self.step, meta, self.disk)

    def described(self, folder: Path, names: Sequence[str]) -> Files:
        return checkpoint.described(folder, names)

    def load(self, folder: Path) -> dict[str, Any]:
        state = json.loads((folder / "state.json").read_text())
        self.step = state["step"]
        meta: dict[str, Any] = state["meta"]
        return meta


def save(root: Path, counter: Counter, groups: dict[str, int], keep: int, **spared: Any) -> Path:
    """A checkpoint without its list."""
    folder = checkpoint.complete(checkpoint.write(root, counter.step, counter.snapshot({"groups": groups})))
    remove_old(root, keep, **spared)
    return folder


def write(root: Path, step: int, *groups: str, keep: int = 3) -> Path:
    """A checkpoint with its list, as the learner leaves them: all groups are of this step."""
    listed = dict.fromkeys(groups, step)
    folder = save(root, Counter(step), listed, keep)
    list_trained(folder, listed)
    return folder


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.name != TRAINED)


def test_the_newest_checkpoint_is_restored_with_every_group_ever_trained_on(tmp_path: Path) -> None:
    for step, groups in ((8, "ab"), (9, ""), (10, "cd")):
        write(tmp_path, step, *groups, keep=1)
    restored = Counter()
    resumed = load_latest(tmp_path, restored)
    assert resumed.trained == trained_groups(tmp_path) == {"a": 8, "b": 8, "c": 10, "d": 10}
    assert (resumed.torn, resumed.forgotten) == ((), 0)
    assert restored.step == 10


def test_without_a_checkpoint_nothing_is_restored(tmp_path: Path) -> None:
    restored = Counter(7)
    assert load_latest(tmp_path / "never made", restored).trained == {}
    assert restored.step == 7
    assert trained_groups(tmp_path / "never made") == {}


def test_a_list_that_a_crash_prevented_is_written_from_the_checkpoint_itself(tmp_path: Path) -> None:
    write(tmp_path, 1, "a")
    save(tmp_path, Counter(2), {"b": 2}, keep=3)
    assert trained_groups(tmp_path) == {"a": 1}
    assert load_latest(tmp_path, Counter()).trained == {"a": 1, "b": 2}
    assert trained_groups(tmp_path) == {"a": 1, "b": 2}


def test_a_group_that_stands_twice_and_a_list_that_is_none_are_found(tmp_path: Path) -> None:
    write(tmp_path, 1, "a")
    write(tmp_path, 2, "a")
    with pytest.raises(CorruptDataError, match=r"group a was trained on twice: in step 1, and by .*step-00000002-0000"):
        trained_groups(tmp_path)
    (tmp_path / TRAINED / "step-00000001-0000.json").write_text('{"a"')
    with pytest.raises(CorruptDataError, match=r"step-00000001-0000\.json is no list of trained groups"):
        trained_groups(tmp_path)


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
def test_a_torn_checkpoint_is_set_aside_with_its_list_for_the_one_before(tmp_path: Path, tear: str) -> None:
    write(tmp_path, 1, "a")
    torn = write(tmp_path, 2, "b", "c")
    TEARS[tear](torn)
    with pytest.raises(CorruptDataError, match=torn.name):
        verify(torn)
    restored = Counter()
    resumed = load_latest(tmp_path, restored)
    assert restored.step == 1
    assert resumed.trained == trained_groups(tmp_path) == {"a": 1}
    assert resumed.forgotten == 2
    assert [torn.name in reason for reason in resumed.torn] == [True]
    assert names(tmp_path) == ["step-00000001-0000", f"torn-{torn.name}"]
    # What was lost is trained again, and is then listed once.
    write(tmp_path, 2, "b", "c", keep=1)
    assert load_latest(tmp_path, Counter()).trained == {"a": 1, "b": 2, "c": 2}


def test_only_the_newest_torn_checkpoint_is_kept_for_a_person(tmp_path: Path) -> None:
    write(tmp_path, 1)
    for step in (2, 3, 4):
        flip_a_bit(write(tmp_path, step, keep=9))
    assert len(load_latest(tmp_path, Counter()).torn) == 3
    assert names(tmp_path) == ["step-00000001-0000", "torn-step-00000004-0000"]
    flip_a_bit(write(tmp_path, 2))
    load_latest(tmp_path, Counter())
    assert names(tmp_path) == ["step-00000001-0000", "torn-step-00000002-0000"]


def test_nothing_begins_anew_where_every_checkpoint_is_torn(tmp_path: Path) -> None:
    torn = write(tmp_path, 2, "a")
    flip_a_bit(torn)
    with pytest.raises(CorruptDataError, match=r"no checkpoint in .* is whole: .*another run\.id"):
        load_latest(tmp_path, Counter())
    assert names(tmp_path) == [torn.name]
    assert trained_groups(tmp_path) == {"a": 2}


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 9, 10, 11):
        write(tmp_path, step, keep=2)
    assert names(tmp_path) == ["step-00000010-0000", "step-00000011-0000"]


def test_a_second_checkpoint_of_a_step_never_replaces_the_first_in_place(tmp_path: Path) -> None:
    for groups in ("a", "bc", ""):
        write(tmp_path, 3, *groups, keep=1)
    assert names(tmp_path) == ["step-00000003-0002"]
    assert load_latest(tmp_path, Counter()).trained == {"a": 3, "b": 3, "c": 3}


def test_protected_steps_outlive_newer_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, Counter(step), {}, keep=2, protected={2, 9})
    assert names(tmp_path) == [f"step-{step:08d}-0000" for step in (2, 4, 5)]
    assert [step_of(path) for path in sorted(tmp_path.iterdir())] == [2, 4, 5]
    save(tmp_path, Counter(6), {}, keep=2, protected={4})
    assert names(tmp_path) == [f"step-{step:08d}-0000" for step in (4, 5, 6)]


def test_a_disk_that_is_full_leaves_nothing_torn(tmp_path: Path) -> None:
    first = write(tmp_path, 1, "a", keep=1)
    full = tmp_path.with_name("full")
    full.mkdir()
    (full / "state.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        save(tmp_path, Counter(2, disk=full), {"b": 2}, keep=1)
    assert names(tmp_path) == [first.name]
    assert load_latest(tmp_path, Counter()).trained == {"a": 1}


def test_a_name_that_could_not_be_synced_is_given_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    beside = checkpoint.write(tmp_path, 1, Counter(1).snapshot({"groups": {"a": 1}}))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "sync", refuse)
        with pytest.raises(OSError, match="Input/output error"):
            checkpoint.complete(beside)
    assert checkpoint.complete(beside).name == "step-00000001-0000"
    assert load_latest(tmp_path, Counter()).trained == {"a": 1}


def test_a_failure_that_is_not_the_disks_leaves_nothing_either(tmp_path: Path) -> None:
    class Alone(Counted):
        def write(self, folder: Path) -> Files:
            raise UnavailableError("rank 1 is gone")

    with pytest.raises(UnavailableError, match="rank 1 is gone"):
        checkpoint.write(tmp_path, 1, Alone(1, {}, None))
    assert names(tmp_path) == []


def test_what_a_crash_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".step-00000001-0000").mkdir()
    (tmp_path / ".step-00000001-0000" / "model.safetensors").write_bytes(b"half")
    write(tmp_path, 2, keep=2)
    assert names(tmp_path) == ["step-00000002-0000"]


def test_young_checkpoints_stay_whatever_their_number(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        folder = save(tmp_path, Counter(step), {}, keep=1, keep_seconds=1000)
        list_trained(folder, {})
    assert sorted(map(step_of, tmp_path.glob("step-*"))) == [1, 2, 3]
    old = tmp_path / "step-00000002-0000" / MANIFEST
    os.utime(old, (old.stat().st_atime, old.stat().st_mtime - 2000))
    save(tmp_path, Counter(4), {}, keep=1, keep_seconds=1000)
    assert sorted(map(step_of, tmp_path.glob("step-*"))) == [1, 3, 4]


def test_meta_and_texts_go_through_a_checkpoint(tmp_path: Path) -> None:
    snapshot = Counter(1).snapshot({"groups": {"a": 1}, "spent": {"tokens": 3}})
    folder = checkpoint.complete(checkpoint.write(tmp_path, 1, snapshot, {"more.json": "{}"}))
    verify(folder)
    assert (folder / "more.json").read_text() == "{}"
    resumed = load_latest(tmp_path, Counter(0))
    assert resumed.meta["spent"] == {"tokens": 3}
    assert resumed.trained == {"a": 1}
    (folder / "more.json").write_text("[]")
    with pytest.raises(CorruptDataError, match=r"more\.json"):
        verify(folder)
