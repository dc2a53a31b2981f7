"""The interface between the generation service and what samples: one protocol, two engines.

An engine knows neither gRPC nor Redis. All methods run on one asyncio loop; heavy work happens elsewhere.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from shared.trajectory import Completion, RouterLayout


@dataclass(frozen=True, slots=True)
class EngineSampling:
    """Fully resolved sampling parameters; the service has validated them."""

    n: int
    temperature: float  # 0: greedy
    top_p: float
    top_k: int  # 0: all tokens
    max_tokens: int
    seed: int | None  # sample i draws from seed + i: repeatable alone and in any batch


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the loaded model is."""

    engine: str
    model: str
    vocab_size: int
    max_model_len: int  # prompt and response together
    eos_token_id: int
    router_layout: RouterLayout | None  # None: a dense model


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy the engine is, for the metrics and for admission."""

    running: int  # sequences that have begun
    waiting: int  # sequences that have not


class Engine(Protocol):
    """Samples from the current weights, and takes new ones while it samples."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def version(self) -> int:
        """The policy version that samples now; 0 is the model folder as loaded."""
        ...

    @property
    def load(self) -> EngineLoad: ...

    async def start(self) -> None:
        """Loads the model and proves that router rows arrive for each token.

        Raises:
            NotFoundError: the model folder is missing or incomplete.
            PreconditionError: the router export of this model or backend is broken.
        """
        ...

    def stream(self, prompt: list[int], sampling: EngineSampling) -> AsyncIterator[Completion]:
        """Yields the new tokens of the n samples as they come, interleaved, each piece with its sample's index.

        A sample's last piece has its finish_reason and the router trace of the *whole* sample. Closing the
        iterator, or cancelling its task, frees the request at once.
        """
        ...

    async def generate(self, prompt: list[int], sampling: EngineSampling) -> list[Completion]:
        """All n samples, complete, in order of index: the path of the stream worker."""
        ...

    async def update_weights(self, version: int, files: list[Path]) -> None:
        """Takes the weights in these safetensors files, already verified, and serves them as `version`.

        Running requests go on: their remaining tokens come from the new version, with the KV cache recomputed.

        Raises:
            InvalidInputError: names or shapes differ from the model's; the old weights serve on, whole.
        """
        ...

    async def healthy(self) -> bool:
        """False once the engine cannot serve any more."""
        ...

    async def close(self) -> None:
        """Frees everything, child processes included; idempotent."""
        ...
