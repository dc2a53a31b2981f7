"""Each rank's part of a version on its way to generation, sent by a thread of its own while the next step trains."""

import json
import threading
from collections.abc import Iterator
from dataclasses import astuple
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from services.learner.checkpointing.held import Held, Sizes
from services.learner.distributed.ranks import Ranks
from services.learner.settings import LearnerSettings
from shared.errors import UnavailableError
from shared.weights.broadcast import Sender, send_beside
from shared.weights.rendezvous import Rendezvous, Rows, TensorSpec


class Divided(Protocol):
    """The weights that train, divided over the ranks: see `services.learner.model.parts.Parts`."""

    def specs(self) -> list[TensorSpec]: ...

    def rows(self) -> Iterator[tuple[Rows, Tensor]]: ...


class Sending:
    """All ranks `take` a version. Then rank 0 may `open` and `send`, again and again; the others `follow` it."""

    def __init__(self, parts: Divided, ranks: Ranks, settings: LearnerSettings, *, keeps_changes: bool) -> None:
        """
        Args:
            parts: what is sent.
            keeps_changes: have what changed since the version before at hand.
        """
        self._parts = parts
        self._ranks = ranks
        self._channel = ranks.sending
        self._settings = settings.transfer
        self._device = ranks.device if settings.transfer.backend == "nccl" else torch.device("cpu")
        self._held = Held(keeps_changes)
        self._lock = threading.Lock()
        self._sender: Sender | None = None  # of the last transfer

    @cached_property
    def specs(self) -> list[TensorSpec]:
        """The tensors of a version."""
        return self._parts.specs()

    def take(self) -> Sizes:
        """Makes the weights as they are now the version that is sent; on rank 0, the bytes of all ranks together.

        Collective. Nothing may be under way.
        """
        own = self._held.take(self._parts.rows())
        sizes = [Sizes(*json.loads(each)) for each in self._ranks.gather(json.dumps(astuple(own)).encode())]
        changes = [size.changes for size in sizes if size.changes is not None]
        return Sizes(sum(size.whole for size in sizes), sum(changes) if len(changes) == len(sizes) else None)

    def open(self, receivers: int, base: int | None) -> Sender:
        """A rendezvous of all ranks with so many workers of generation; see `Sender`. On rank 0."""
        transfer = self._settings
        return Sender(transfer.host, receivers, transfer.timeout_seconds, self._device, self._ranks.size, base)

    def send(self, sender: Sender) -> set[int]:
        """Has every rank send its part, and gives what `Sender.send` does. On rank 0.

        Raises:
            UnavailableError: also where another rank could not send.
        """
        place = sender.rendezvous
        with self._lock:
            self._sender = sender
            self._channel.command(json.dumps(astuple(place)).encode())
            try:
                refused = sender.send(self._held.outgoing(whole=place.base is None))
            finally:
                answers = [answer.decode() for answer in self._channel.gather(b"")]
        for answer in answers:
            if answer:
                raise UnavailableError(answer)
        return refused

    def close(self) -> None:
        """Lets the other ranks end, once what is under way has been sent; nobody is waited for. On rank 0."""
        if self._sender is not None:
            self._sender.call_off()
        with self._lock:
            self._channel.command(b"")

    def follow(self) -> None:
        """Does the part of a rank other than 0, until rank 0 has closed."""
        while order := self._channel.command():
            place, answer = Rendezvous(*json.loads(order)), ""
            try:
                outgoing = self._held.outgoing(whole=place.base is None)
                send_beside(place, self._ranks.rank, outgoing, self._device)
            except UnavailableError as error:
                answer = str(error)
            self._channel.gather(answer.encode())
