"""Starts vLLM: what it reads from the environment, how it is imported, and its arguments.

Nothing here imports vLLM before `launch` is called.
"""

import gc
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from services.generation.engines.base import EngineOptions
from services.generation.engines.vllm_settings import VllmSettings
from shared.errors import PreconditionError
from shared.orphans import die_with_parent

# What vLLM is to load as its worker and its scheduler.
WORKER = "services.generation.engines.vllm_capture.RouterWorker"
SCHEDULER = "services.generation.engines.vllm_capture.RouterScheduler"

# Set before vLLM is imported, in this process and so in its child.
_ENVIRONMENT = {
    # The first step would otherwise compile for 5 to 40 s.
    "TORCHDYNAMO_DISABLE": "1",
    # On CPU, this alone keeps the worker in the scheduler's process: one child that imports vLLM, not two.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # The seam is written for the V1 model runner.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    # Nothing is reported to anybody, and nothing is looked for on the network.
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    # Every start would otherwise print a page of warnings about what is chosen here on purpose, and about the
    # insides of vLLM and torch.
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONWARNINGS": "ignore",
    "TORCH_LOGS": "-torch._library",  # it says that Triton, which has no backend for a CPU, is not there
}
# It would override the size of the KV cache that the settings name.
_UNSET = "VLLM_CPU_KVCACHE_SPACE"


def launch(
    model: Path,
    architectures: list[str],
    sockets: Path,
    options: EngineOptions,
    settings: VllmSettings,
) -> Any:
    """Imports vLLM, starts its child process and waits until that has loaded the model; returns the `AsyncLLM`.

    The child dies with the *thread* that calls this.

    Args:
        architectures: the entry of that name in config.json.
        sockets: folder for what connects to the child; vLLM leaves its files there.
        options, settings: see `VllmEngine`.

    Raises:
        PreconditionError: vLLM cannot serve this model; the child has printed why.
    """
    os.environ.pop(_UNSET, None)
    os.environ |= _ENVIRONMENT | {"OMP_NUM_THREADS": str(options.threads), "VLLM_RPC_BASE_PATH": str(sockets)}
    with _uncollected():
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.model_executor.models.registry import ModelRegistry
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.core import EngineCoreProc

    for architecture in architectures:
        if (known := ModelRegistry.models.get(architecture)) is not None:
            # vLLM would look at the class in a process of its own, which takes 10 s where no cache is at hand.
            ModelRegistry.register_model(architecture, known.load_model_cls())
    arguments = AsyncEngineArgs(
        model=str(model),
        dtype="float32",
        seed=options.seed,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        kv_cache_memory_bytes=settings.kv_cache_bytes,
        enable_prefix_caching=True,
        # Of a prompt that is cut in two, vLLM throws the first draw away and rewinds the request's generator, which
        # a generator on CPU cannot: the child would die where a step has fewer tokens left than a seeded prompt.
        enable_chunked_prefill=False,
        enforce_eager=True,
        # The kernel for CPU rotates three-dimensional queries (DeepSeek) wrongly.
        compilation_config={"custom_ops": ["-rotary_embedding"]},
        # What a token was really sampled from: after temperature, top-k and top-p.
        logprobs_mode="processed_logprobs",
        # The model's own sampling defaults must not leak into requests.
        generation_config="vllm",
        skip_tokenizer_init=True,
        use_tqdm_on_load=False,
        disable_log_stats=True,
        worker_cls=WORKER,
        scheduler_cls=SCHEDULER,
    )
    entry = EngineCoreProc.run_engine_core
    EngineCoreProc.run_engine_core = staticmethod(run_child)
    try:
        return AsyncLLM.from_engine_args(arguments)
    except (OSError, RuntimeError, ValueError) as error:
        raise PreconditionError(f"vLLM cannot serve model folder {model}: {error}") from error
    finally:
        EngineCoreProc.run_engine_core = staticmethod(entry)


def run_child(*args: Any, **kwargs: Any) -> None:
    """The child's entry: has the kernel kill it when the thread that started it ends, however that ends."""
    die_with_parent()
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid != os.getppid():
        return  # it ended while this process was importing vLLM
    from vllm.v1.engine.core import EngineCoreProc

    EngineCoreProc.run_engine_core(*args, **kwargs)


@contextmanager
def _uncollected() -> Iterator[None]:
    """For imports: a million new objects, all to stay, that the collector would walk for 1.3 s now, and later again."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
