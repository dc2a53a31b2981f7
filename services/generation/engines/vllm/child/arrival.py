"""Weights on their way into a worker of vLLM, beside its steps. Nothing here imports vLLM."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from services.generation.engines.model_files import check_finite
from shared.errors import CorruptDataError, InvalidInputError, UnavailableError
from shared.weights.broadcast import receive
from shared.weights.rendezvous import Rendezvous, TensorSpec


class Arrival:
    """Receives in a thread of its own, which does not keep the worker alive."""

    def __init__(
        self,
        rendezvous: list[Any],
        rank: int,
        specs: list[list[Any]],
        device: torch.device,
        serving: Callable[[], Iterator[tuple[str, torch.Tensor]]],
    ) -> None:
        """Begins.

        Args:
            rendezvous, specs: the fields of the dataclasses, for they travelled.
            rank: of this worker.
            serving: gives the tensors that serve, of the host's memory, for what changed in them.
        """
        self._serving = serving
        self.tensors: dict[str, torch.Tensor] = {}
        self._answer: tuple[str, str] | None = None
        arguments = (Rendezvous(*rendezvous), rank, [TensorSpec(n, d, tuple(shape)) for n, d, shape in specs], device)
        threading.Thread(target=self._receive, args=arguments, name="arrival", daemon=True).start()

    @property
    def answer(self) -> tuple[str, str] | None:
        """None while they arrive; then the name and the message of the error, or two empty strings."""
        return self._answer

    def _receive(self, rendezvous: Rendezvous, rank: int, specs: list[TensorSpec], device: torch.device) -> None:
        try:
            base = None if rendezvous.base is None else dict(self._serving())
            tensors = receive(rendezvous, rank, specs, device, base)
            check_finite(tensors.items())
        except (CorruptDataError, InvalidInputError, UnavailableError) as error:
            self._answer = type(error).__name__, str(error)
        except Exception as error:
            self._answer = UnavailableError.__name__, f"weights did not arrive: {error!r}"
        else:
            self.tensors = tensors
            self._answer = "", ""
