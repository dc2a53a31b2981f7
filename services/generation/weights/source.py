"""The files of a version: read whole, or made of those of the version that serves and of what changed since.

The files that serve are held open, so that they are there when the next version comes, whatever the learner removes
meanwhile. What is made of them is in the memory of this machine and has no name: it is gone with this process. Engines
open it by the number that it has here, `/proc/PID/fd/N`, as do their child processes.
"""

import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

import psutil
from safetensors import SafetensorError

from routershift.v1 import trajectory_pb2 as pb
from services.generation import metrics
from shared.errors import CorruptDataError, NotFoundError, PreconditionError
from shared.models.folder import weight_files
from shared.weights import delta, published

log = logging.getLogger(__name__)

_COPY_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class VersionFiles:
    """The files of a version, open, and what was read to have them."""

    version: int
    paths: list[Path]  # for the engine
    files: Mapping[str, BinaryIO | BufferedReader]  # by name
    kind: str  # full or delta
    moved: int  # bytes
    _closing: ExitStack

    def close(self) -> None:
        self._closing.close()


class WeightsSource:
    """Gives the files of versions, one after the other."""

    def __init__(self, root: Path) -> None:
        """Args: root: of the weights on disk."""
        self._root = root
        self._serving: VersionFiles | None = None

    def open(self, manifest: pb.WeightsManifest) -> VersionFiles:
        """The files of a version, verified. Where what changed cannot be used, it says why and reads them whole.

        Raises:
            NotFoundError, CorruptDataError: of `published.verify`.
            OSError: a file cannot be read any more.
        """
        if manifest.HasField("delta"):
            try:
                return self._from_changes(manifest)
            except PreconditionError as error:
                self._refuse("base", manifest.version, error)
            except NotFoundError as error:
                self._refuse("notfound", manifest.version, error)
            except CorruptDataError as error:
                self._refuse("corruptdata", manifest.version, error)
            except (OSError, SafetensorError) as error:  # the learner has removed it meanwhile
                self._refuse("notfound", manifest.version, error)
        return self._whole(manifest)

    def serve(self, files: VersionFiles | None) -> None:
        """Says whose weights serve now; None where they did not come from files."""
        before, self._serving = self._serving, files
        if before is not None:
            before.close()

    def _whole(self, manifest: pb.WeightsManifest) -> VersionFiles:
        paths = published.verify(self._root, manifest)
        with ExitStack() as stack:
            files = {path.name: stack.enter_context(path.open("rb")) for path in paths}
            moved = sum(file.size_bytes for file in manifest.files)
            return VersionFiles(manifest.version, paths, files, "full", moved, stack.pop_all())

    def _from_changes(self, manifest: pb.WeightsManifest) -> VersionFiles:
        """Those that serve, with all changes since.

        Raises:
            PreconditionError: what serves is no version that they begin with.
            NotFoundError, CorruptDataError: a delta is missing or damaged, or what it makes is not this version.
        """
        steps = self._steps(manifest)
        deltas = [published.verify_delta(self._root, step) for step in steps]
        with ExitStack() as stack:
            files, paths = dict[str, BinaryIO | BufferedReader](), []
            for file in manifest.files:
                copy = stack.enter_context(open(os.memfd_create(file.name), "w+b"))  # noqa: PTH123  # it has no path
                path = _path(copy)
                self._copy(file.name, copy)
                for changes in deltas:
                    delta.apply(_named(changes, file.name), path)
                made = published.folder_of(self._root, manifest) / file.name
                published.check(path, Path(f"{made}, made by its delta,"), file)
                files[file.name] = copy
                paths.append(path)
            moved = sum(file.size_bytes for step in steps for file in step.delta.files)
            return VersionFiles(manifest.version, paths, files, "delta", moved, stack.pop_all())

    def _steps(self, manifest: pb.WeightsManifest) -> list[pb.WeightsManifest]:
        """The versions whose changes lead from the one that serves to this one, in order."""
        served = self._serving.version if self._serving else None
        steps = [manifest]
        while (base := steps[0].delta.base) != served:
            before = None
            if served is not None and base > served:
                before = published.read_manifest(self._root / published.folder_name(base))
            if before is None or not before.HasField("delta"):
                here = "no files of a version serve here" if served is None else f"version {served} serves here"
                raise PreconditionError(f"its delta begins with version {base}, and {here}")
            steps.insert(0, before)
        return steps

    def _copy(self, name: str, copy: BinaryIO | BufferedReader) -> None:
        serving = self._serving.files.get(name) if self._serving else None
        if serving is None:
            raise PreconditionError(f"its delta changes {name}, which the version that serves here does not have")
        serving.seek(0)
        shutil.copyfileobj(serving, copy, _COPY_BYTES)
        copy.flush()

    def _refuse(self, reason: str, version: int, error: Exception) -> None:
        metrics.DELTAS_REFUSED.labels(reason).inc()
        log.warning("version %d is read whole: %s", version, error)


def check_memory(model: Path) -> None:
    """Whether this machine has room for what changes are applied to: the version that serves, and the next.

    Raises:
        PreconditionError: it has not.
    """
    needed = 2 * sum(file.stat().st_size for file in weight_files(model))
    available = psutil.virtual_memory().available
    if needed > available:
        raise PreconditionError(
            f"run.weights_full_every keeps two copies of the weights in memory, {needed / 1e9:.1f} GB, and "
            f"{available / 1e9:.1f} GB are available; set it to 0, or give the machine more memory"
        )


def _named(paths: list[Path], name: str) -> Path:
    found = next((path for path in paths if path.name == name), None)
    if found is None:
        raise CorruptDataError(f"its delta has no {name}")
    return found


def _path(file: BinaryIO | BufferedReader) -> Path:
    return Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
