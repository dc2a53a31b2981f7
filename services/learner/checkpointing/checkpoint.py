"""Checkpoints on disk: written beside, made durable, then renamed; a torn one is never taken for a whole one.

Beside them, in `trained/`, stands a list for each checkpoint of the groups trained on since the one before, each with
its step. The lists are kept for ever: together they say what the newest checkpoint contains, whatever Redis forgot.
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shared.errors import CorruptDataError
from shared.files import sha256, sync

MANIFEST = "manifest.json"
STATE = "state.json"  # what a trainer says of itself in a checkpoint
FORMAT = 1  # of a checkpoint, in STATE: raised where an earlier version would read a new one wrongly; without, 1
TRAINED = "trained"

_HASHED_AT_ONCE = 8  # files of a checkpoint that is verified

# In front of the name of what was set aside: a torn checkpoint, or the list of one.
_ASIDE = "torn-"


Files = dict[str, dict[str, int | str]]
"""What a manifest says of each file, by its name: `size` in bytes and `sha256`."""


class Snapshot(Protocol):
    """The state of a trainer at one moment."""

    def write(self, folder: Path) -> Files:
        """Every process that holds a part of the state has written it into `folder`; gives what each has hashed."""
        ...

    def close(self) -> None:
        """Lets go of it. Not where `write` still runs."""
        ...


class Checkpointable(Protocol):
    """What a checkpoint is of."""

    step: int  # batches done

    def snapshot(self, meta: dict[str, Any]) -> Snapshot:
        """The state now, and `meta`."""
        ...

    def load(self, folder: Path) -> dict[str, Any]:
        """Goes on from what a snapshot wrote; gives its `meta`."""
        ...

    def described(self, folder: Path, names: Sequence[str]) -> Files:
        """Size and hash of files; its processes share the work."""
        ...


@dataclass(frozen=True, slots=True)
class Resumed:
    """Where a trainer goes on."""

    trained: dict[str, int]  # every group that its state contains, with the step that trained on it
    torn: tuple[str, ...]  # why newer checkpoints were passed over
    meta: Mapping[str, Any]  # what the snapshot was given
    forgotten: int  # groups that they listed: trained on, and lost with them


def begin(root: Path, step: int) -> Path:
    """Makes an empty folder beside the place of a checkpoint; what was left half-written before is cleared away.

    Raises:
        OSError: the disk is full, read-only or gone.
    """
    root.mkdir(parents=True, exist_ok=True)
    for abandoned in root.glob(".step-*"):
        shutil.rmtree(abandoned)
    stem = f"step-{step:08d}-"
    taken = [int(path.name.removeprefix(stem)) for path in root.glob(f"{stem}*")]
    beside = root / f".{stem}{max(taken, default=-1) + 1:04d}"
    beside.mkdir()
    return beside


def write(root: Path, step: int, snapshot: Snapshot, texts: Mapping[str, str] | None = None) -> Path:
    """Writes a checkpoint beside its place, and gives the folder; `complete` has to follow. The manifest comes last.

    A second checkpoint of the same step stands beside the first, so that nothing durable is ever replaced in place.

    Args:
        step: that the snapshot is of.
        texts: of further files in the checkpoint, by name.

    Raises:
        OSError: the disk is full, read-only or gone; the checkpoints before are as they were.
    """
    beside = begin(root, step)
    try:
        files = snapshot.write(beside)
        for file, text in (texts or {}).items():
            (beside / file).write_text(text, encoding="utf-8")
        describe(beside, files)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    return beside


def complete(beside: Path) -> Path:
    """Gives a checkpoint its name, durable on return; `list_trained` has to follow.

    Raises:
        OSError: the disk is full, read-only or gone; the checkpoints before are as they were.
    """
    final = beside.with_name(beside.name.removeprefix("."))
    if not final.exists():  # or this is tried again, as the disk has refused to sync the name
        beside.rename(final)
    sync(final.parent)
    return final


def remove_old(root: Path, keep: int, protected: Collection[int] = (), keep_seconds: float = 0.0) -> None:
    """Leaves the `keep` newest checkpoints, those of the steps in `protected`, and those up to `keep_seconds` old."""
    for old in sorted(root.glob("step-*"))[:-keep]:
        if step_of(old) not in protected and _age(old) >= keep_seconds:
            shutil.rmtree(old, ignore_errors=True)


def list_trained(folder: Path, groups: Mapping[str, int]) -> None:
    """Writes the list of a durable checkpoint's groups, durable on return. Where there is none, `load_latest` does.

    Raises:
        OSError: the disk is full, read-only or gone; no half-written list is left in the way.
    """
    if not groups:
        return
    lists = folder.parent / TRAINED
    if not lists.is_dir():
        lists.mkdir()
        sync(folder.parent)
    beside = lists / f".{folder.name}.json"
    beside.write_text(json.dumps(dict(groups)))
    sync(beside)
    beside.rename(lists / f"{folder.name}.json")
    sync(lists)


def trained_groups(root: Path) -> dict[str, int]:
    """Every group that the checkpoints of a run contain, kept or not, with the step that trained on it.

    Args:
        root: the folder of the checkpoints.

    Raises:
        CorruptDataError: a list that cannot be read, or a group that stands twice.
    """
    found: dict[str, int] = {}
    for path in sorted((root / TRAINED).glob("step-*.json")):
        for group, step in _read_list(path).items():
            if group in found:
                raise CorruptDataError(
                    f"group {group} was trained on twice: in step {found[group]}, and by {path} again"
                )
            found[group] = step
    return found


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(folder.name.split("-")[1])


def load_latest(root: Path, trainer: Checkpointable) -> Resumed:
    """Restores the newest whole checkpoint, if there is one, and writes its list where a crash came before it.

    Torn checkpoints are set aside, the newest of them kept for inspection; so are lists of what was never durable
    or is no more. A group in `trained` that is delivered again needs settling, not training.

    Raises:
        CorruptDataError: no checkpoint is whole, or the lists are not; nothing was changed.
        OSError: the disk takes no writes.
    """
    folder, torn = _newest_whole(root, trainer.described)
    meta = {} if folder is None else trainer.load(folder)
    newest = "" if folder is None else folder.name
    forgotten = 0
    for path in sorted((root / TRAINED).glob("step-*.json")):
        if path.stem > newest:
            forgotten += len(_read_list(path))
            path.replace(path.with_name(_ASIDE + path.name))
    if folder is not None and not (root / TRAINED / f"{newest}.json").is_file():
        list_trained(folder, meta["groups"])
    if torn:
        first, *others = torn
        for path in (*others, *root.glob(f"{_ASIDE}*")):
            shutil.rmtree(path)
        first.rename(first.with_name(_ASIDE + first.name))
    return Resumed(trained_groups(root), tuple(torn.values()), meta, forgotten)


def described(folder: Path, names: Sequence[str]) -> Files:
    """Size and hash of files, several at once; where one cannot be read, the `error` in their place."""

    def attempt(name: str) -> dict[str, int | str]:
        try:
            return _described(folder / name)
        except OSError as error:
            return {"error": str(error)}

    with ThreadPoolExecutor(_HASHED_AT_ONCE) as pool:
        return dict(zip(names, pool.map(attempt, names), strict=True))


def verify(folder: Path, describes: Callable[[Path, Sequence[str]], Files] = described) -> None:
    """Raises CorruptDataError for a missing manifest or file, a name outside, a wrong size or a wrong SHA-256.

    Args:
        describes: finds out what the files are now, the largest first.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text())
    except (FileNotFoundError, ValueError) as error:
        raise CorruptDataError(f"checkpoint {folder} has no readable {MANIFEST}: {error}") from None
    if not isinstance(files, dict):
        raise CorruptDataError(f"checkpoint {folder} has a {MANIFEST} that is no table of files")
    for name in files:
        if name in ("", "..") or Path(name).name != name:
            raise CorruptDataError(f"checkpoint {folder} names the file {name!r}; expected a plain name")
        if not (folder / name).is_file():
            raise CorruptDataError(f"checkpoint file {folder / name} is missing")
    for name, found in describes(folder, sorted(files, key=lambda name: -(folder / name).stat().st_size)).items():
        if found != files[name]:
            raise CorruptDataError(f"checkpoint file {folder / name} is {found}; its manifest says {files[name]}")


def _newest_whole(root: Path, describes: Callable[[Path, Sequence[str]], Files]) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint whose files are all there and unchanged; and what is wrong with those after it."""
    torn: dict[Path, str] = {}
    for folder in sorted(root.glob("step-*"), reverse=True):
        try:
            verify(folder, describes)
        except CorruptDataError as error:
            torn[folder] = str(error)
            continue
        return folder, torn
    if torn:
        raise CorruptDataError(
            f"no checkpoint in {root} is whole: {next(iter(torn.values()))}. "
            "Bring one back from a copy, or begin again with another run.id"
        )
    return None, torn


def _age(folder: Path) -> float:
    """Seconds since a checkpoint was written; without end for one that is torn."""
    try:
        return time.time() - (folder / MANIFEST).stat().st_mtime
    except OSError:
        return math.inf


def _read_list(path: Path) -> dict[str, int]:
    try:
        groups = json.loads(path.read_text())
        return {str(group): int(step) for group, step in groups.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise CorruptDataError(f"{path} is no list of trained groups: {error}; bring it back from a copy") from None


def describe(folder: Path, known: Files | None = None) -> None:
    """Adds the manifest of a checkpoint and makes everything durable.

    Args:
        known: what is said of files that are durable; of all others sizes and hashes are found out.
    """
    files = dict(known or {})
    others = [path for path in sorted(folder.iterdir()) if path.name not in (MANIFEST, *files)]
    for path in others:
        files[path.name] = _described(path)
        sync(path)
    (folder / MANIFEST).unlink(missing_ok=True)  # it may be a link to that of another checkpoint
    (folder / MANIFEST).write_text(json.dumps(files, indent=1))
    sync(folder / MANIFEST)
    sync(folder)


def _described(path: Path) -> dict[str, int | str]:
    return {"size": path.stat().st_size, "sha256": sha256(path)}
