"""Published weights on disk: written once by the learner, verified by whoever loads them.

A version is one folder of safetensors files under the weights root, with `manifest.json` beside them. It appears
by an atomic rename, so a reader sees all of it or nothing. With LoRA, a folder `adapter` in it holds the adapters
alone, with a manifest of its own; generation reads the merged weights. Of a version that was sent to generation and
is not kept there is the manifest alone. A folder `delta` holds what changed since the
version before, for replicas that have that one; the files of the version are there all the same.
"""

import re
import shutil
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from google.protobuf import json_format

from routershift.v1 import trajectory_pb2 as pb
from shared.errors import CorruptDataError, NotFoundError
from shared.files import sha256, sync
from shared.streams.progress import Progress
from shared.weights import delta

MANIFEST = "manifest.json"
ADAPTER = "adapter"
# safetensors makes files that only their owner can read; generation may run as another user.
_READABLE = 0o644
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def folder_name(version: int) -> str:
    """Folder of a version below the weights root; names sort as versions do."""
    return f"v{version:08d}"


def protected_versions(progress: Progress, version: int, evaluate_every: int, keep_best: int = 1) -> set[int]:
    """The versions whose weights and checkpoint are kept beside the newest: at most three more than `keep_best`.

    These are the best ones, the one last evaluated, the one being evaluated, and the newest multiple of
    `evaluate_every`, which the curriculum may not have begun with.

    Args:
        progress: of the run, as the curriculum and the learner report it.
        version: the newest.
        evaluate_every: versions between evaluations; 0: first and last only.
        keep_best: how many of the best.
    """
    accuracies = {int(each): accuracy for each, accuracy in (progress.accuracies or {}).items()}
    best = sorted(accuracies, key=lambda each: (-accuracies[each], each))[:keep_best]
    reported = (progress.best_version, progress.evaluated_version, progress.evaluating_version)
    protected = {reported_version for reported_version in reported if reported_version is not None}
    protected |= set(best)
    return protected | ({version // evaluate_every * evaluate_every} if evaluate_every else set())


def publish(
    root: Path,
    version: int,
    write: Callable[[Path], None],
    keep: int,
    protected: Collection[int] = (),
    base: int | None = None,
) -> pb.WeightsManifest:
    """Calls `write(folder)` on an empty folder, then makes its safetensors files version `version`.

    Of the versions up to this one, the `keep` newest and the `protected` ones stay on disk. Publishing a version again
    replaces it.

    Args:
        base: version from which what changed is published as well, where it is here and that takes less than half.

    Raises:
        OSError, SafetensorError: the disk is full, read-only or gone; the versions before are as they were.
    """
    root.mkdir(parents=True, exist_ok=True)
    for abandoned in root.glob(".v*"):
        shutil.rmtree(abandoned)
    name = folder_name(version)
    beside, final = root / f".{name}", root / name
    try:
        beside.mkdir()
        write(beside)
        if (adapter := beside / ADAPTER).is_dir():
            _describe(adapter, ADAPTER, version)
        changes = None if base is None else _changes(root / folder_name(base), beside, base)
        manifest = _describe(beside, name, version, changes)
        if final.exists():
            final.rename(root / f".{name}.before")
        beside.rename(final)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)  # it may be what fills the disk
        raise
    sync(root)
    spared = {folder_name(each) for each in protected}
    # After a crash there are later versions, until they are published again.
    published = sorted(path for path in root.glob("v*") if path.name <= name)
    for old in (*published[:-keep], *root.glob(".v*")):
        if old.name not in spared:
            shutil.rmtree(old, ignore_errors=True)
    return manifest


def read_manifest(folder: Path) -> pb.WeightsManifest:
    """The manifest in the folder of a version, or in the folder of its adapters.

    Raises:
        NotFoundError: there is none.
        CorruptDataError: it is no manifest.
    """
    try:
        manifest = json_format.Parse((folder / MANIFEST).read_text(encoding="utf-8"), pb.WeightsManifest())
    except FileNotFoundError:
        raise NotFoundError(f"{folder} has no {MANIFEST}; expected published weights") from None
    except (ValueError, json_format.ParseError) as error:
        raise CorruptDataError(f"{folder / MANIFEST} is no manifest of published weights: {error}") from None
    if manifest.folder != folder.name:
        raise CorruptDataError(f"{folder / MANIFEST} is that of a folder {manifest.folder!r}; bring its own back")
    return manifest


def versions(root: Path) -> list[int]:
    """The versions below a weights root, ascending."""
    return sorted(int(path.name[1:]) for path in root.glob("v*") if path.name[1:].isdecimal())


def has_files(folder: Path) -> bool:
    """Whether the folder of a version has weights: a version that was sent alone has none."""
    return bool(_weights(folder))


def _changes(base: Path, folder: Path, version: int) -> pb.WeightsDelta | None:
    """Writes what changed from the files of a version to those of this folder; None where they are not worth it."""
    files, changes = _weights(folder), folder / delta.FOLDER
    if [path.name for path in _weights(base)] != [path.name for path in files]:
        return None
    changes.mkdir()
    if not all(delta.write(base / path.name, path, changes / path.name) for path in files):
        shutil.rmtree(changes)
        return None
    return pb.WeightsDelta(base=version, files=_durable(changes))


def _describe(folder: Path, name: str, version: int, changes: pb.WeightsDelta | None = None) -> pb.WeightsManifest:
    """Adds the manifest and makes everything durable."""
    manifest = pb.WeightsManifest(version=version, folder=name, files=_durable(folder), delta=changes)
    manifest.created_at.GetCurrentTime()
    (folder / MANIFEST).write_text(json_format.MessageToJson(manifest))
    sync(folder / MANIFEST)
    sync(folder)
    return manifest


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _durable(folder: Path) -> list[pb.WeightsFile]:
    """The safetensors files of a folder, which are durable on return."""
    files = []
    for path in _weights(folder):
        files.append(pb.WeightsFile(name=path.name, size_bytes=path.stat().st_size, sha256=sha256(path)))
        path.chmod(_READABLE)
        sync(path)
    sync(folder)
    return files


def verify(root: Path, manifest: pb.WeightsManifest) -> list[Path]:
    """The files of a version, after their names, sizes and checksums were checked.

    Raises:
        NotFoundError: the folder or a file is not there, or the version has none.
        CorruptDataError: a name that would leave the root, a wrong size or a wrong SHA-256.
    """
    folder = folder_of(root, manifest)
    if not manifest.files:
        raise NotFoundError(f"version {manifest.version} has no files: it was sent to the replicas of its time alone")
    return _verified(folder, manifest.files, manifest.version)


def verify_delta(root: Path, manifest: pb.WeightsManifest) -> list[Path]:
    """The files of what changed since `manifest.delta.base`, checked as those of `verify`; its errors are those."""
    return _verified(folder_of(root, manifest) / delta.FOLDER, manifest.delta.files, manifest.version)


def folder_of(root: Path, manifest: pb.WeightsManifest) -> Path:
    """The folder of a version. Raises CorruptDataError for a name that would leave the root."""
    if not _PLAIN_NAME.fullmatch(manifest.folder):
        raise CorruptDataError(
            f"manifest.folder is {manifest.folder!r}; expected a plain folder name below the weights root"
        )
    return root / manifest.folder


def _verified(folder: Path, files: Iterable[pb.WeightsFile], version: int) -> list[Path]:
    paths = []
    for file in files:
        if not _PLAIN_NAME.fullmatch(file.name) or not file.name.endswith(".safetensors"):
            raise CorruptDataError(f"manifest.files.name is {file.name!r}; expected a plain *.safetensors file name")
        path = folder / file.name
        if not path.is_file():
            raise NotFoundError(f"weights file {path} of version {version} is missing")
        check(path, path, file)
        paths.append(path)
    return paths


def check(path: Path, name: Path, file: pb.WeightsFile) -> None:
    """Raises CorruptDataError where a file is not what the manifest says. Args: name: that it has in the message."""
    if (size := path.stat().st_size) != file.size_bytes:
        raise CorruptDataError(f"{name} has {size} bytes; the manifest says {file.size_bytes}")
    if (digest := sha256(path)) != file.sha256:
        raise CorruptDataError(f"{name} has SHA-256 {digest}; the manifest says {file.sha256}")
