"""Checkpoints on disk: written beside, made durable, then renamed; a torn one is never taken for a whole one."""

import contextlib
import json
import shutil
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from shared.errors import CorruptDataError, PreconditionError, RouterShiftError
from shared.files import sha256, sync

MANIFEST = "manifest.json"


class Checkpointable(Protocol):
    step: int

    def save(self, folder: Path, meta: dict[str, Any]) -> None:
        """Every process that holds a part of the state has written it into `folder` when this returns."""
        ...

    def load(self, folder: Path) -> dict[str, Any]: ...


def save(
    root: Path, trainer: Checkpointable, groups: Sequence[str], keep: int, protected: Collection[int] = ()
) -> Path:
    """Writes a checkpoint that lists `groups`, those it contains since the one before; durable on return.

    The `keep` newest stay on disk, and those of the steps in `protected`. A second checkpoint of the same step stands
    beside the first, so that nothing durable is ever replaced in place.

    Raises:
        PreconditionError: the disk is full, read-only or gone; the checkpoints before are as they were.
    """
    with _writing(root):
        root.mkdir(parents=True, exist_ok=True)
        for abandoned in root.glob(".step-*"):
            shutil.rmtree(abandoned)
        stem = f"step-{trainer.step:08d}-"
        taken = [int(path.name.removeprefix(stem)) for path in root.glob(f"{stem}*")]
        name = f"{stem}{max(taken, default=-1) + 1:04d}"
        beside = root / f".{name}"
        try:
            beside.mkdir()
            trainer.save(beside, {"groups": list(groups)})
            _describe(beside)
            final = beside.rename(root / name)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        sync(root)
        for old in sorted(root.glob("step-*"))[:-keep]:
            if step_of(old) not in protected:
                shutil.rmtree(old)
        return final


def step_of(folder: Path) -> int:
    """The step of a checkpoint's folder."""
    return int(folder.name.split("-")[1])


def latest(root: Path) -> Path | None:
    """The newest checkpoint whose files are all there and unchanged; None where there is none."""
    for folder in sorted(root.glob("step-*"), reverse=True):
        try:
            verify(folder)
        except CorruptDataError:
            continue
        return folder
    return None


def load_latest(root: Path, trainer: Checkpointable) -> tuple[str, ...]:
    """Restores the newest whole checkpoint, if there is one, and returns the groups that it lists.

    A listed group that is delivered again has been trained on: it needs settling, not training.
    """
    folder = latest(root)
    return () if folder is None else tuple(trainer.load(folder)["groups"])


def verify(folder: Path) -> None:
    """Raises CorruptDataError for a missing manifest or file, a wrong size or a wrong SHA-256."""
    try:
        files = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise CorruptDataError(f"checkpoint {folder} has no readable {MANIFEST}: {error}") from None
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CorruptDataError(f"checkpoint file {path} is missing")
        found = {"size": path.stat().st_size, "sha256": sha256(path)}
        if found != expected:
            raise CorruptDataError(f"checkpoint file {path} is {found}; its manifest says {expected}")


def _describe(folder: Path) -> None:
    """Adds the manifest and makes everything durable."""
    files = {path.name: {"size": path.stat().st_size, "sha256": sha256(path)} for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(files, indent=1))
    for path in (*folder.iterdir(), folder):
        sync(path)


@contextlib.contextmanager
def _writing(root: Path) -> Iterator[None]:
    try:
        yield
    except RouterShiftError:
        raise  # some of these are OSErrors too
    except OSError as error:
        raise PreconditionError(
            f"no checkpoint could be written to {error.filename or root}: {error.strerror or error} "
            f"(errno {error.errno}); free space there, or point run.folder at a disk that takes writes"
        ) from error
