"""Published weights: all or nothing on disk, and nothing that is not what its manifest says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from routershift.v1 import trajectory_pb2 as pb
from shared.errors import CorruptDataError, NotFoundError
from shared.streams.progress import MOST_ACCURACIES, Progress
from shared.weights import delta, published


def write(value: float) -> Callable[[Path], None]:
    def into(folder: Path) -> None:
        for name in ("a", "b"):
            save_file({name: np.full(4, value, np.float32)}, folder / f"{name}.safetensors")

    return into


def test_a_version_is_published_whole_and_verified(tmp_path: Path) -> None:
    manifest = published.publish(tmp_path, 3, write(1.5), keep=2)
    paths = published.verify(tmp_path, manifest)
    assert [path.name for path in paths] == ["a.safetensors", "b.safetensors"]
    assert load_file(paths[0])["a"].tolist() == [1.5] * 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v00000003"]


def test_only_the_newest_stay(tmp_path: Path) -> None:
    for version in range(5):
        published.publish(tmp_path, version, write(version), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v00000003", "v00000004"]


def test_protected_versions_stay_too(tmp_path: Path) -> None:
    for version in range(6):
        published.publish(tmp_path, version, write(version), keep=1, protected={1, 3, 77} if version < 5 else {3})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v00000003", "v00000005"]


def test_what_was_evaluated_is_being_or_may_come_to_be_is_protected() -> None:
    progress = Progress(best_version=20, evaluated_version=60, evaluating_version=80, step=107)
    assert published.protected_versions(progress, 107, 20) == {20, 60, 80, 100}
    assert published.protected_versions(progress, 107, 0) == {20, 60, 80}
    assert published.protected_versions(Progress(), 20, 20) == {20}
    assert published.protected_versions(Progress(), 7, 0) == set()


def test_publishing_again_replaces(tmp_path: Path) -> None:
    published.publish(tmp_path, 1, write(1.0), keep=2)
    manifest = published.publish(tmp_path, 1, write(2.0), keep=2)
    assert load_file(published.verify(tmp_path, manifest)[0])["a"][0] == 2.0


def test_what_changed_since_a_version_is_published_beside_the_next(tmp_path: Path) -> None:
    """The new files are those that a copy of the old ones becomes, and the changes go with their version."""

    def change(value: float) -> Callable[[Path], None]:
        def into(folder: Path) -> None:
            for name in ("a", "b"):
                save_file({name: np.array([value, *range(1000)], np.float32)}, folder / f"{name}.safetensors")

        return into

    before = published.publish(tmp_path, 1, change(0.5), keep=1)
    old = {path.name: path.read_bytes() for path in published.verify(tmp_path, before)}
    manifest = published.publish(tmp_path, 2, change(0.25), keep=1, base=1)
    assert not before.HasField("delta")
    assert manifest.delta.base == 1
    assert published.read_manifest(tmp_path / manifest.folder) == manifest
    for new, changes in zip(
        published.verify(tmp_path, manifest), published.verify_delta(tmp_path, manifest), strict=True
    ):
        assert changes.stat().st_size < new.stat().st_size / 10
        copy = tmp_path / "copy"
        copy.write_bytes(old[new.name])
        delta.apply(changes, copy)
        assert copy.read_bytes() == new.read_bytes()
    published.publish(tmp_path, 3, change(0.25), keep=1)
    assert [path for path in tmp_path.rglob("*") if "v00000002" in str(path)] == []


def test_nothing_is_published_beside_a_version_that_changed_altogether_or_has_none_before(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        save_file({"a": np.random.default_rng().random(1000)}, folder / "a.safetensors")

    published.publish(tmp_path, 1, write, keep=2)
    for version, base in ((2, 1), (4, 3)):
        manifest = published.publish(tmp_path, version, write, keep=2, base=base)
        assert not manifest.HasField("delta")
        assert not (tmp_path / manifest.folder / delta.FOLDER).exists()


def test_a_failure_while_writing_publishes_nothing(tmp_path: Path) -> None:
    def fails(folder: Path) -> None:
        write(1.0)(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        published.publish(tmp_path, 1, fails, keep=2)
    assert list(tmp_path.iterdir()) == []


def test_versions_of_before_a_crash_push_none_out_that_is_published_again(tmp_path: Path) -> None:
    for version in (6, 7, 8):
        published.publish(tmp_path, version, write(version), keep=2)
    manifest = published.publish(tmp_path, 5, write(5), keep=2)
    published.verify(tmp_path, manifest)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v00000005", "v00000007", "v00000008"]


def test_what_a_crash_left_half_published_is_cleared_away(tmp_path: Path) -> None:
    published.publish(tmp_path, 1, write(1.0), keep=2)
    (tmp_path / ".v00000002").mkdir()
    (tmp_path / ".v00000002" / "a.safetensors").write_bytes(b"half")
    published.publish(tmp_path, 2, write(2.0), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v00000001", "v00000002"]


def test_a_changed_byte_a_lost_byte_and_a_lost_file_are_found(tmp_path: Path) -> None:
    manifest = published.publish(tmp_path, 1, write(1.0), keep=2)
    path = tmp_path / manifest.folder / "a.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CorruptDataError, match="SHA-256"):
        published.verify(tmp_path, manifest)
    path.write_bytes(whole[:-1])
    with pytest.raises(CorruptDataError, match="bytes; the manifest says"):
        published.verify(tmp_path, manifest)
    path.unlink()
    with pytest.raises(NotFoundError, match="is missing"):
        published.verify(tmp_path, manifest)


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "a.bin", ".hidden.safetensors", ""])
def test_a_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    manifest = pb.WeightsManifest(version=1, folder="v1", files=[pb.WeightsFile(name=name)])
    with pytest.raises(CorruptDataError, match=r"manifest\.files\.name"):
        published.verify(tmp_path, manifest)


@pytest.mark.parametrize("folder", ["..", "../v1", "/v1", ""])
def test_a_folder_cannot_leave_the_root(tmp_path: Path, folder: str) -> None:
    manifest = pb.WeightsManifest(version=1, folder=folder, files=[pb.WeightsFile(name="a.safetensors")])
    with pytest.raises(CorruptDataError, match=r"manifest\.folder"):
        published.verify(tmp_path, manifest)


def test_a_manifest_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="has no files"):
        published.verify(tmp_path, pb.WeightsManifest(version=1, folder="v1"))


def test_as_many_of_the_best_are_protected_as_are_asked_for() -> None:
    progress = Progress(best_version=20, evaluated_version=80)
    for version, accuracy in ((20, 0.6), (40, 0.5), (60, 0.6), (80, 0.1)):
        progress = replace(progress, accuracies=progress.with_accuracy(version, accuracy))
    assert published.protected_versions(progress, 87, 0, keep_best=1) == {20, 80}
    assert published.protected_versions(progress, 87, 0, keep_best=2) == {20, 60, 80}
    assert published.protected_versions(progress, 87, 0, keep_best=9) == {20, 40, 60, 80}


def test_accuracies_of_the_best_are_remembered_and_no_more() -> None:
    progress = Progress()
    for version in range(200):
        progress = replace(progress, accuracies=progress.with_accuracy(version, version / 1000))
    assert len(progress.accuracies or {}) == MOST_ACCURACIES
    assert max(progress.accuracies or {}, key=int) == "199"
    assert Progress.of({name: str(value) for name, value in progress.as_fields().items()}) == progress
