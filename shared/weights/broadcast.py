"""Weights over the network: the ranks of the learner send a version to the workers of generation, each its part of it.

The group lives for one version: workers come and go between two of them, and one that fails takes nothing with it but
this version. Over NCCL where the learner sends from GPUs, over gloo otherwise. Nobody joins the group before all have
come to the rendezvous, for a group cannot be left while it forms. What a rank sends is one stream of bytes, whole rows
or what changed in them, in buckets: neither side ever has more of it in memory beside the weights themselves. A
receiver hands over all or nothing, and compares the SHA-256 of each sender's part with that of the sender.

The way over NCCL was written from torch's interface and has never been run: it takes two GPUs.
"""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from shared.errors import CorruptDataError, UnavailableError
from shared.weights import delta
from shared.weights.buckets import Group, Inflow, Outflow, bytes_of
from shared.weights.outgoing import DTYPES, Outgoing, digest
from shared.weights.rendezvous import Rendezvous, TensorSpec

_BUCKET_BYTES = 64 << 20
_LOOK_SECONDS = 0.02
# What the store of a rendezvous holds: who has come, and whether it lacks what the changes begin with; then how they go
# on (the backend and the bytes of a bucket), or that they do not; what each sender sends; and how it went.
_HERE, _WAY, _PLAN, _DIGEST, _VERDICT = "here/{}", "way", "plan/{}", "digest/{}", "verdict/{}"
_GLOO, _NCCL, _OFF = "gloo", "nccl", "off"
_COME, _LACKS = "", "lacks"
_WHOLE, _DIFFERS = "whole", "differs"

# In the plan of a sender: name, first and count of rows, bytes that are sent, and whether they are what changed.
_Piece = tuple[str, int, int, int, bool]


class LackingError(UnavailableError):
    """Some workers do not have what the changes begin with; nothing was sent. Attribute: ranks: theirs."""

    def __init__(self, ranks: set[int]) -> None:
        super().__init__(f"workers {sorted(ranks)} do not have the version that the changes begin with")
        self.ranks = ranks


class Sender:
    """The first rank of the learner: opens the rendezvous, so that its port is known before anybody is told of it."""

    def __init__(
        self,
        host: str,
        receivers: int,
        seconds: float,
        device: torch.device,
        senders: int = 1,
        base: int | None = None,
    ) -> None:
        """Listens on a free port.

        Args:
            host: address of this machine, as the receivers know it.
            receivers: workers, not replicas.
            seconds: for all to come, and then for each bucket.
            device: that bytes leave from: a GPU sends over NCCL, to workers that have other GPUs.
            senders: ranks of the learner; the others come by `send_beside`.
            base: version from which changes are sent; None: all is.

        Raises:
            UnavailableError: this machine cannot be reached at `host`.
        """
        try:
            self._store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=_deadline(seconds))  # type: ignore[attr-defined]  # documented, but not exported
        except RuntimeError as error:
            raise UnavailableError(f"no rendezvous can be opened at {host}: {error}") from error
        self._device = device
        self._called_off = threading.Event()
        self.rendezvous = Rendezvous(host, self._store.port, senders, senders + receivers, seconds, base)

    def send(self, outgoing: Outgoing) -> set[int]:
        """Returns when every receiver has everything: the ranks of those to which it was no version that they can use.

        Raises:
            LackingError: nothing was sent, for some have not what the changes begin with.
            UnavailableError: somebody did not come, or left; or the rendezvous was called off.
        """
        place = self.rendezvous
        try:
            self._gather()
            group = Group(self._store, 0, place, self._device, _BUCKET_BYTES)
            _send(self._store, group, 0, place, outgoing)
            return self._verdicts()
        except RuntimeError as error:
            raise UnavailableError(
                f"weights were not sent to all {place.size - place.senders} workers: {error}"
            ) from error

    def call_off(self) -> None:
        """Sends everybody home if not all have come. A transfer that has begun goes on."""
        self._called_off.set()

    def _gather(self) -> None:
        """Returns when all have come, and has told them how to go on."""
        place = self.rendezvous
        deadline = time.monotonic() + place.seconds
        while missing := self._missing():
            if self._called_off.wait(_LOOK_SECONDS) or time.monotonic() > deadline:
                if not (missing := self._missing()):
                    break  # the last of them has come meanwhile
                self._store.set(_WAY, _OFF)
                why = (
                    "called off"
                    if self._called_off.is_set()
                    else f"over after learner.transfer.timeout_seconds, {place.seconds:g},"
                )
                raise UnavailableError(
                    f"weights were not sent to all {place.size - place.senders} workers: the rendezvous was {why} "
                    f"while {missing} had not come"
                )
        lacking = {rank for rank in range(1, place.size) if self._store.get(_HERE.format(rank)).decode() == _LACKS}
        if lacking:
            self._store.set(_WAY, _OFF)
            raise LackingError(lacking)
        backend = _NCCL if self._device.type == "cuda" else _GLOO
        self._store.set(_WAY, f"{backend} {_BUCKET_BYTES}")

    def _missing(self) -> int:
        """Ranks that have not come."""
        return sum(not self._store.check([_HERE.format(rank)]) for rank in range(1, self.rendezvous.size))

    def _verdicts(self) -> set[int]:
        workers = range(self.rendezvous.senders, self.rendezvous.size)
        return {rank for rank in workers if self._store.get(_VERDICT.format(rank)).decode() == _DIFFERS}


def send_beside(rendezvous: Rendezvous, rank: int, outgoing: Outgoing, device: torch.device) -> None:
    """The part of a rank of the learner other than the first. Raises UnavailableError as `Sender.send` does."""
    _knock(rendezvous)
    try:
        store, group = _come(rendezvous, rank, device)
        _send(store, group, rank, rendezvous, outgoing)
    except RuntimeError as error:
        raise UnavailableError(f"rank {rank} of the learner has not sent its weights: {error}") from error


def receive(
    rendezvous: Rendezvous,
    rank: int,
    specs: Sequence[TensorSpec],
    device: torch.device,
    base: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """All tensors of a version, on the CPU.

    Args:
        rank: of this worker in the group.
        device: of this worker; NCCL delivers to it.
        base: the tensors of `rendezvous.base`, of any device and float dtype that is exact; they stay as they are.

    Raises:
        UnavailableError: a rank of the learner or another worker did not come, or left; nothing was handed over.
        CorruptDataError: what came is not what was sent, or its changes begin with other weights.
    """
    tensors = {spec.name: torch.empty(spec.shape, dtype=DTYPES[spec.dtype]) for spec in specs}
    if base is not None:
        for name, tensor in tensors.items():
            tensor.copy_(base[name])
    _knock(rendezvous)
    try:
        store, group = _come(rendezvous, rank, device)
        parts: list[list[Tensor]] = []
        for root in range(rendezvous.senders):
            plan = _plan(store, root)
            stream = Inflow(group, root, _total(plan))
            parts.append([_fill(stream, tensors, *piece) for piece in plan])
        digests = [store.get(_DIGEST.format(root)).decode() for root in range(rendezvous.senders)]
        group.part()
        differing = [root for root, part in enumerate(parts) if digest(part) != digests[root]]
        lacking = sum(spec.nbytes for spec in specs) - sum(rows.nbytes for part in parts for rows in part)
        store.set(_VERDICT.format(rank), _DIFFERS if differing or lacking else _WHOLE)
    except RuntimeError as error:
        raise UnavailableError(f"weights did not arrive from {rendezvous.host}:{rendezvous.port}: {error}") from error
    if lacking:
        raise CorruptDataError(f"the ranks of the learner sent {lacking} bytes less than the version has")
    if differing:
        made = "" if rendezvous.base is None else f", made of version {rendezvous.base} and what changed since,"
        raise CorruptDataError(f"the part of rank {differing[0]} of the learner{made} has another SHA-256 than there")
    return tensors


def decline(rendezvous: Rendezvous, ranks: Iterable[int]) -> None:
    """Says that these workers do not have what the changes begin with, so that all is sent.

    Raises:
        UnavailableError: the rendezvous is over.
    """
    _knock(rendezvous)
    try:
        store = _store_of(rendezvous)
        for rank in ranks:
            store.set(_HERE.format(rank), _LACKS)
    except RuntimeError as error:
        raise UnavailableError(f"the rendezvous at {rendezvous.host}:{rendezvous.port} is over: {error}") from error


def _send(store: Any, group: Group, rank: int, rendezvous: Rendezvous, outgoing: Outgoing) -> None:
    """What this rank of the learner has, between what the others have. Returns when everybody has everything."""
    plan: list[_Piece] = [
        (rows.name, rows.first, rows.count, piece.nbytes, is_delta) for rows, piece, is_delta in outgoing.pieces()
    ]
    store.set(_PLAN.format(rank), json.dumps(plan))
    store.set(_DIGEST.format(rank), digest(outgoing.rows.values()))  # of all ranks at once, before the first sends
    for root in range(rendezvous.senders):
        if root != rank:
            Inflow(group, root, _total(_plan(store, root))).pass_by()
            continue
        stream = Outflow(group, rank, _total(plan))
        for _, piece, _ in outgoing.pieces():
            stream.write(piece)
    group.part()


def _plan(store: Any, root: int) -> list[_Piece]:
    return [tuple(piece) for piece in json.loads(store.get(_PLAN.format(root)))]


def _total(plan: Iterable[_Piece]) -> int:
    return sum(nbytes for _, _, _, nbytes, _ in plan)


def _fill(
    stream: Inflow, tensors: Mapping[str, Tensor], name: str, first: int, count: int, nbytes: int, is_delta: bool
) -> Tensor:
    """Reads what comes of some rows; gives these rows, as they are then."""
    tensor = tensors[name]
    rows = tensor[first : first + count] if tensor.ndim else tensor
    if not is_delta:
        stream.read(bytes_of(rows))
        return rows
    changes = torch.empty(nbytes, dtype=torch.uint8)
    stream.read(changes)
    gaps, words = np.split(changes.numpy().view(delta.WORD), 2)
    with contextlib.suppress(CorruptDataError):  # the digest tells
        delta.change(bytes_of(rows).numpy().view(delta.WORD), gaps, words)
    return rows


def _come(rendezvous: Rendezvous, rank: int, device: torch.device) -> tuple[Any, Group]:
    """The store and the group, once all have come."""
    store = _store_of(rendezvous)
    store.set(_HERE.format(rank), _COME)
    backend, _, bucket_bytes = store.get(_WAY).decode().partition(" ")
    if backend == _OFF:
        raise UnavailableError(
            f"the rendezvous at {rendezvous.host}:{rendezvous.port} was called off: not all had come"
        )
    way = torch.device("cpu") if backend == _GLOO else device
    return store, Group(store, rank, rendezvous, way, int(bucket_bytes))


def _store_of(rendezvous: Rendezvous) -> Any:
    return dist.TCPStore(  # type: ignore[attr-defined]  # documented, but not exported
        rendezvous.host, rendezvous.port, is_master=False, timeout=_deadline(rendezvous.seconds)
    )


def _deadline(seconds: float) -> timedelta:
    return timedelta(seconds=seconds)


def _knock(rendezvous: Rendezvous) -> None:
    """Raises UnavailableError where the rendezvous is over. A store would go on asking for it until the deadline."""
    try:
        socket.create_connection((rendezvous.host, rendezvous.port), rendezvous.seconds).close()
    except OSError as error:
        raise UnavailableError(f"the rendezvous at {rendezvous.host}:{rendezvous.port} is over: {error}") from error
