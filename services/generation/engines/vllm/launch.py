"""Starts vLLM: what it reads from the environment, how it is imported, and its arguments.

Nothing here imports vLLM before `launch` is called.
"""

import multiprocessing
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from services.generation.engines.base import EngineOptions
from services.generation.engines.vllm.limits import attention_backend, refuse
from services.generation.engines.vllm.settings import VllmSettings
from services.generation.engines.vllm.stats import LoadStats
from shared.errors import PreconditionError
from shared.process.collection import uncollected
from shared.process.orphans import die_with_parent

# What vLLM is to load as its worker and its scheduler.
WORKER = "services.generation.engines.vllm.child.worker.RouterWorker"
SCHEDULER = "services.generation.engines.vllm.child.scheduler.RouterScheduler"
# Under which key of vLLM's additional_config they find the `RouterExport`.
ROUTER_EXPORT = "router_export"
# And which tensors of the model folder they are to leave out.
IGNORED = "ignored_tensors"

# Set before vLLM is imported, in this process and so in its child.
_ENVIRONMENT = {
    # On CPU, this alone keeps the worker in the scheduler's process: one child that imports vLLM, not two.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # What the seam was first written for; the settings may say otherwise.
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
# Without it, the first step compiles for 5 to 40 s even where the model is to run op by op.
_EAGER = {"TORCHDYNAMO_DISABLE": "1"}
# On CPU, each of several workers would otherwise want a NUMA node of its own to bind its threads to.
_UNBOUND = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
# In config.json where queries have a part that is rotated and one that is not (DeepSeek): of such, the kernel for CPU
# rotates three-dimensional ones wrongly.
_ROTATED_PART = "qk_rope_head_dim"
# It would override the size of the KV cache that the settings name.
_UNSET = "VLLM_CPU_KVCACHE_SPACE"


def set_environment(sockets: Path, options: EngineOptions, settings: VllmSettings) -> None:
    """What vLLM, and torch under it, read from the environment when they are imported: to be called before that.

    Args:
        sockets: folder for what connects to the child; vLLM leaves its files there.
        options, settings: see `VllmEngine`.
    """
    os.environ.pop(_UNSET, None)
    os.environ |= _ENVIRONMENT | {
        "OMP_NUM_THREADS": str(options.threads),
        "VLLM_RPC_BASE_PATH": str(sockets),
    }
    if settings.model_runner == "v2":
        os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    if settings.enforce_eager:
        os.environ |= _EAGER
    if settings.tensor_parallel_size > 1:
        os.environ |= _UNBOUND


def launch(
    model: Path,
    config: Mapping[str, Any],
    ignored: Sequence[str],
    options: EngineOptions,
    settings: VllmSettings,
    stats: LoadStats,
) -> Any:
    """Imports vLLM, starts its child process and waits until that has loaded the model; returns the `AsyncLLM`.

    The child dies with the *thread* that calls this. `set_environment` comes first.

    Args:
        config: the model's config.json.
        ignored: tensors of the folder that the model does not have; of some, vLLM would die.
        options, settings: see `VllmEngine`.
        stats: is told after each step.

    Raises:
        PreconditionError: vLLM cannot serve this model, and the child has printed why; or not with these settings.
    """
    with uncollected():
        from vllm.config import ModelConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.model_executor.models.registry import ModelRegistry
        from vllm.platforms import current_platform
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.engine.core import EngineCoreProc

    on_cpu = current_platform.is_cpu()
    limits = options.max_model_len, options.max_num_seqs
    refuse(model, config, settings, limits, on_cpu=on_cpu)
    for architecture in config.get("architectures", []):
        if (known := ModelRegistry.models.get(architecture)) is not None:
            # vLLM would look at the class in a process of its own, which takes 10 s where no cache is at hand.
            ModelRegistry.register_model(architecture, known.load_model_cls())
    kv_cache_bytes = settings.kv_cache_bytes if settings.gpu_memory_utilization is None else None
    chosen = {
        "attention_backend": attention_backend(settings.attention_backend, config, on_cpu),
        "max_num_batched_tokens": settings.max_num_batched_tokens,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
    }
    arguments = AsyncEngineArgs(
        model=str(model),
        trust_remote_code=False,
        served_model_name=model.name,  # a label of vLLM's metrics
        dtype=settings.dtype,
        quantization=settings.quantization,
        seed=options.seed,
        max_model_len=options.max_model_len,
        max_num_seqs=options.max_num_seqs,
        kv_cache_memory_bytes=kv_cache_bytes,
        enable_prefix_caching=settings.enable_prefix_caching,
        enable_chunked_prefill=settings.enable_chunked_prefill,
        enforce_eager=settings.enforce_eager,
        moe_backend=settings.moe_backend,
        tensor_parallel_size=settings.tensor_parallel_size,
        enable_expert_parallel=settings.enable_expert_parallel,
        # A token and its router row leave a step together, and the next one begins after that.
        async_scheduling=False,
        compilation_config={"custom_ops": ["-rotary_embedding"] if _ROTATED_PART in config else []},
        # What a token was really sampled from: after temperature, min-p, top-k and top-p.
        logprobs_mode="processed_logprobs",
        max_logprobs=-1,  # the whole vocabulary: requests are checked where they come in
        # The model's own sampling defaults must not leak into requests.
        generation_config="vllm",
        skip_tokenizer_init=True,
        use_tqdm_on_load=False,
        disable_log_stats=False,
        worker_cls=WORKER,
        scheduler_cls=SCHEDULER,
        additional_config={ROUTER_EXPORT: options.router_export.value, IGNORED: list(ignored)},
        **{name: value for name, value in chosen.items() if value is not None},
    )
    entry, untie = EngineCoreProc.run_engine_core, ModelConfig.maybe_untie_word_embeddings
    EngineCoreProc.run_engine_core = staticmethod(run_child)
    if ignored:
        _tie_as_config_says()
    try:
        return AsyncLLM.from_engine_args(arguments, stat_loggers=[stats])
    except (OSError, RuntimeError, ValueError) as error:
        raise PreconditionError(f"vLLM cannot serve model folder {model}: {error}") from error
    finally:
        EngineCoreProc.run_engine_core, ModelConfig.maybe_untie_word_embeddings = staticmethod(entry), untie


def run_child(*args: Any, **kwargs: Any) -> None:
    """The child's entry: has the kernel kill it when the thread that started it ends, however that ends."""
    die_with_parent()
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid != os.getppid():
        return  # it ended while this process was importing vLLM
    from vllm.v1.engine.core import EngineCoreProc

    from services.generation.engines.vllm.child.scheduler import send_rows_of_aborted

    send_rows_of_aborted()
    if kwargs["vllm_config"].additional_config[IGNORED]:
        _tie_as_config_says()
    EngineCoreProc.run_engine_core(*args, **kwargs)


def _tie_as_config_says() -> None:
    """Where a file has a head beside the embedding that config.json ties it to, vLLM would make one of its own for it.

    It is ignored instead: the two are equal, and no published version has both.
    """
    from vllm.config import ModelConfig

    ModelConfig.maybe_untie_word_embeddings = lambda config: None
