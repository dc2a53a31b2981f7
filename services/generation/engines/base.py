"""The interface between the generation service and what samples: one protocol, two engines.

An engine knows neither gRPC nor Redis. All methods run on one asyncio loop; heavy work happens elsewhere.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from routershift.routing.layout import RouterLayout
from routershift.trajectory import Completion, RouterExport
from shared.weights.rendezvous import Rendezvous, TensorSpec


class UpdatePolicy(StrEnum):
    """What becomes of running requests when new weights come."""

    KEEP = "keep"  # they go on with the new weights, and their KV cache is computed again
    KEEP_CACHE = "keep_cache"  # they go on with the new weights, over keys and values that the old ones computed
    WAIT = "wait"  # they finish first; requests that have not begun wait for the new weights
    ABORT = "abort"  # they end with what they have, as FinishReason.ABORTED


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What every engine is told when it is made."""

    max_model_len: int | None = None  # longest prompt and response together; None takes the model's own limit
    max_num_seqs: int = 128  # sequences in one batch; more wait
    seed: int = 0  # of the requests that bring none
    threads: int = 1  # CPU threads; more than there are idle cores is slower than one
    router_export: RouterExport = RouterExport.TOPK
    update_policy: UpdatePolicy = UpdatePolicy.KEEP


@dataclass(frozen=True, slots=True)
class EngineSampling:
    """Fully resolved sampling parameters; the service has validated them."""

    n: int
    temperature: float  # 0: greedy
    top_p: float
    top_k: int  # 0: all tokens
    max_tokens: int
    seed: int | None  # sample i draws from seed + i: repeatable alone and in any batch
    min_p: float = 0.0  # drops tokens less likely than this times the most likely one; 0: none
    stop: tuple[str, ...] = ()  # a sample ends with the token that completes one of these, and keeps it
    stop_token_ids: tuple[int, ...] = ()  # beside the model's own end of sequence; kept as well
    logprobs: int = 0  # most likely tokens to report at each position; 0: none


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What the loaded model is."""

    engine: str
    model: str
    vocab_size: int
    max_model_len: int  # prompt and response together
    eos_token_ids: tuple[int, ...]  # each ends a response: see `shared.models.folder.end_ids`
    router_layout: RouterLayout | None  # None: a dense model
    workers: int = 1  # processes that share the model; each takes all weights
    gpus: int = 0  # that it computes on


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy the engine is, for metrics, admission and the watch for an engine that stands still."""

    running: int  # sequences that have begun
    waiting: int  # sequences that have not
    kv_cache_usage: float = 0.0  # share of the KV cache in use, 0 to 1
    preemptions: int = 0  # since the start: sequences whose KV cache was given to others, and computed again
    tokens: int = 0  # since the start: response tokens sampled
    # While new weights are put in place: the seconds of processor time that the engine's processes have used, which
    # grow unless they stand still. None at other times.
    replacing: float | None = None


@dataclass(frozen=True, slots=True)
class Files:
    """Weights in safetensors files, already verified."""

    paths: Sequence[Path]


@dataclass(frozen=True, slots=True)
class Arriving:
    """Weights that the learner sends, all or what changed since the version that serves: `shared.weights.broadcast`."""

    rendezvous: Rendezvous
    first_rank: int  # of the engine's first worker; its others follow
    specs: Sequence[TensorSpec]


Weights = Files | Arriving


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

    async def update_weights(self, version: int, weights: Weights) -> float:
        """Takes these weights and serves them as `version`. The old ones sample until all of the new ones are there.

        What becomes of running requests is the engine's `UpdatePolicy`. Under KEEP and KEEP_CACHE their remaining
        tokens come from the new version. Gives the seconds for which nothing was sampled.

        Raises:
            InvalidInputError: names or shapes differ from the model's, a tensor holds NaN or infinity, or a probe
                of the new weights does; the old weights serve on, whole.
            CorruptDataError: what arrived is not what was sent, or changes of other weights; the old ones serve on.
            UnavailableError: weights did not arrive, and the old ones serve on; or the engine is no longer `healthy`.
        """
        ...

    async def healthy(self) -> bool:
        """False once the engine cannot serve any more."""
        ...

    async def close(self) -> None:
        """Frees everything, child processes included; idempotent."""
        ...
