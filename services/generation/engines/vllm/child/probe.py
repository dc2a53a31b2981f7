"""Whether what the loaded weights compute is finite, asked of a worker of vLLM while no step runs.

Written for vLLM 0.32.0. A request that no scheduler knows goes through the worker as any does, on the block of the KV
cache that no request has: vLLM's null block, which nothing reads that has a meaning. Layers of different groups share
it, one after the other, for each reads what it wrote itself.
"""

from typing import Any

import numpy as np
import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput

_NAME = "routershift-probe"
_NULL_BLOCK = 0
_TOKENS = 8  # of the prompt at most, from all over the vocabulary


@torch.inference_mode()
def is_finite(worker: Any) -> bool:
    """Samples one token greedily from a few; whether its log-prob is a number. Every worker of a group takes part."""
    runner, config = worker.model_runner, worker.model_config
    count = min(_TOKENS, config.max_model_len - 1, worker.vllm_config.cache_config.block_size)
    prompt = [int(token) for token in np.linspace(0, config.get_vocab_size() - 1, count)]
    # Each group of layers has a table, and one block holds the prompt.
    blocks = [_NULL_BLOCK] * len(runner.kv_cache_config.kv_cache_groups)
    request = NewRequestData(
        req_id=_NAME,
        prompt_token_ids=prompt,
        mm_features=[],
        sampling_params=SamplingParams(temperature=0.0, max_tokens=1, logprobs=0),
        pooling_params=None,
        block_ids=tuple([block] for block in blocks),
        num_computed_tokens=0,
        lora_request=None,
        prefill_token_ids=prompt,
    )
    step = SchedulerOutput.make_empty()
    step.scheduled_new_reqs = [request]
    step.scheduled_cached_reqs = CachedRequestData.make_empty()
    step.num_scheduled_tokens, step.total_num_scheduled_tokens = {_NAME: count}, count
    step.new_block_ids_to_zero = [_NULL_BLOCK]
    output = worker.execute_model(step)
    if output is None:
        output = runner.sample_tokens(None)
    end = SchedulerOutput.make_empty()
    end.finished_req_ids = {_NAME}
    worker.execute_model(end)
    logprobs = getattr(output, "logprobs", None)
    return logprobs is None or bool(np.isfinite(np.asarray(logprobs.logprobs)).all())
