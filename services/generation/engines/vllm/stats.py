"""What vLLM says of its work: the numbers of `EngineLoad`, and its own Prometheus metrics.

Nothing here imports vLLM before it is running.
"""

from typing import Any


class LoadStats:
    """A logger of statistics for vLLM 0.32.0, which makes one for each of its engines and calls it after each step."""

    def __init__(self) -> None:
        self.kv_cache_usage = 0.0  # 0 to 1, after the latest step
        self.preemptions = 0  # since the start
        self.tokens = 0  # since the start: sampled for requests that were still wanted

    def __call__(self, vllm_config: Any, engine_index: int) -> "LoadStats":
        """vLLM takes a function that makes the logger."""
        return self

    def record(
        self, scheduler_stats: Any, iteration_stats: Any, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        if scheduler_stats is not None:
            self.kv_cache_usage = scheduler_stats.kv_cache_usage
        if iteration_stats is not None:
            self.preemptions += iteration_stats.num_preempted_reqs
            self.tokens += iteration_stats.num_generation_tokens

    def log(self) -> None:
        """Nothing is printed."""

    def log_engine_initialized(self) -> None:
        """Nothing is printed."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """This engine never sleeps."""


def forget_metrics() -> None:
    """Takes vLLM's metrics out of the process's registry: their engine has ended."""
    from vllm.v1.metrics.prometheus import unregister_vllm_metrics

    unregister_vllm_metrics()
