"""The state of a trainer at one moment, and its way to disk while training goes on.

Each rank copies the shards that it holds to host memory, then writes and hashes its own files in a thread. What several
ranks hold alike, the first of them writes: of several copies of the weights, one is written.
"""

import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from torch.distributed.tensor import DTensor

from services.learner.checkpointing import tensor_file
from services.learner.checkpointing.checkpoint import STATE, Files
from services.learner.checkpointing.state import OPTIMIZER, PARAMETERS, TENSORS
from services.learner.checkpointing.tensor_file import Shard
from services.learner.distributed.fsdp import is_first_holder
from services.learner.distributed.ranks import Ranks
from services.learner.model.optimizer import AdamW

log = logging.getLogger(__name__)

_FILE_BYTES = 1 << 30  # above which the next tensor goes into another file


class Snapshot:
    """What `state.load` restores. Made on all ranks; rank 0 calls `write`, then `close`; the others `follow`."""

    def __init__(
        self,
        ranks: Ranks,
        parameters: Mapping[str, Tensor],
        optimizer: AdamW,
        tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        copies: bool = True,
    ) -> None:
        """
        Args:
            parameters: those of the optimizer, by name.
            tensors: further small state, equal on all ranks; rank 0 writes it.
            meta: JSON; rank 0 writes it.
            copies: False: nothing may train before it is closed.
        """
        self._ranks = ranks
        self._meta = json.dumps(dict(meta), indent=1)
        held = {PARAMETERS + name: weight for name, weight in optimizer.weights(parameters).items()}
        for name, parameter in parameters.items():
            held |= {f"{OPTIMIZER}{name}/{field}": value for field, value in optimizer.state[parameter].items()}
        held |= {TENSORS + name: tensor for name, tensor in tensors.items()}
        self._files = self._divided({name: t for name, t in held.items() if _is_ours(t, ranks)}, copies)

    def write(self, folder: Path) -> Files:
        """All ranks write into a folder that all see; durable on return, but for the folder's entries. On rank 0.

        It may be called again, with an empty folder, where the disk has refused.

        Raises:
            OSError: the disk of some rank has refused.
            RuntimeError: some rank failed otherwise.
            UnavailableError: some rank is gone.
        """
        self._ranks.beside.command(str(folder).encode())
        own = self._attempt(folder)
        found: Files = {}
        for part in self._ranks.beside.gather(own):
            answer = json.loads(part)
            if refused := answer.get("refused"):
                raise OSError(*refused)
            if failed := answer.get("failed"):
                raise RuntimeError(f"checkpoint not written to {folder}: {failed}")
            found |= answer["files"]
        return found

    def close(self) -> None:
        """Lets go of the copy, on all ranks. On rank 0."""
        self._ranks.beside.command(b"")
        self._files = {}

    def follow(self) -> None:
        """Does the part of a rank other than 0, until rank 0 has closed."""
        while folder := self._ranks.beside.command():
            self._ranks.beside.gather(self._attempt(Path(folder.decode())))
        self._files = {}

    def _attempt(self, folder: Path) -> bytes:
        """What this rank has written, or why it has not, as JSON."""
        try:
            files = {name: tensor_file.write(folder / name, shards) for name, shards in self._files.items()}
            if self._ranks.rank == 0:
                (folder / STATE).write_text(self._meta, encoding="utf-8")
        except OSError as error:
            place = error.filename and str(error.filename)
            return json.dumps({"refused": [error.errno, f"rank {self._ranks.rank}: {error.strerror}", place]}).encode()
        except Exception as error:  # rank 0 waits for an answer, and ends the learner with this one
            log.exception("the shards of this rank are not written")
            return json.dumps({"failed": f"rank {self._ranks.rank}: {error!r}"}).encode()
        return json.dumps({"files": files}).encode()

    def _divided(self, held: Mapping[str, Tensor], copies: bool) -> dict[str, dict[str, Shard]]:
        """The shards of this rank by file."""
        files: list[dict[str, Shard]] = [{}]
        size = 0
        for name, tensor in held.items():
            if size > _FILE_BYTES:
                files.append({})
                size = 0
            shard = files[-1][name] = _shard(tensor, copies)
            size += shard.part.nbytes
        names = (
            f"shard-{self._ranks.rank + 1:05d}-model-{i:05d}-of-{len(files):05d}" for i in range(1, len(files) + 1)
        )
        return {f"{name}.safetensors": shards for name, shards in zip(names, files, strict=True) if shards}


class Follows(Protocol):
    """What rank 0 has a part of on every rank, beside the training."""

    def follow(self) -> None:
        """Does the part of a rank other than 0, until rank 0 has closed."""
        ...


class Following:
    """A thread in which a rank other than 0 does what rank 0 tells it to, one thing after the other."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def begin(self, part: Follows) -> None:
        """Raises what ended the thread before, if it failed."""
        self.end()
        # A daemon: where this rank fails, it is to end at once, and with it the learner.
        self._thread = threading.Thread(target=self._run, args=(part.follow,), name="following", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Waits for the thread; raises what ended it, if it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            raise self._error

    def _run(self, follow: Callable[[], None]) -> None:
        try:
            follow()
        except Exception as error:
            self._error = error


def _is_ours(tensor: Tensor, ranks: Ranks) -> bool:
    """A rank writes its shards; what several ranks hold alike, the first of them writes."""
    return is_first_holder(tensor, ranks) and (not isinstance(tensor, DTensor) or tensor.to_local().numel() > 0)


def _shard(tensor: Tensor, copies: bool) -> Shard:
    if isinstance(tensor, DTensor):
        (chunk,) = tensor.__create_chunk_list__()  # type: ignore[no-untyped-call]  # torch gives it no types
        local, offset = tensor.to_local(), tuple(chunk.offsets)
    else:
        local, offset = tensor, (0,) * tensor.ndim
    local = local.detach()
    return Shard(local.to("cpu", copy=True) if copies else local, offset)
