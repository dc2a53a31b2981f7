"""What runs inside the child of the vLLM engine: router taps, the carrier of their rows, and weight updates.

Written for vLLM 0.32.0 with the V1 model runner. The worker taps each MoE router, packs one row per sampled token
and attaches the rows to the step's output; the scheduler collects them per request and hands them over when the
request ends, in the channel that vLLM has for expert ids. Tokens and rows leave a step together, so they are
aligned by construction, and a preempted request's recomputation never overwrites what the behaviour policy did.

Only vLLM's own processes import this module: it imports vLLM.
"""

import atexit
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch.nn.functional import logsigmoid
from vllm.model_executor.layers.attention import is_deferred_attention_layer
from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbeddingBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload.layerwise import (
    finalize_layerwise_reload,
    get_layerwise_info,
    initialize_layerwise_reload,
)
from vllm.model_executor.models.utils import extract_layer_index
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.worker.cpu_worker import CPUWorker


@dataclass(frozen=True, slots=True)
class StepRows:
    """The router rows of one step."""

    rows: NDArray[np.uint16]  # [requests, L, 2K]: expert ids, then the bits of their float16 log-scores
    index_of: dict[str, int]  # request id -> row


class RouterCapture:
    """Copies what the routers of a model compute, and packs the rows of the tokens that were sampled."""

    def __init__(self, routers: list[Any], score_function: str, max_tokens: int, device: torch.device) -> None:
        """Taps `routers`, one per routed layer; a step has at most `max_tokens` tokens.

        Must run before compilation or graph capture: a compiled graph would go past the taps in silence.
        """
        self._score_function = score_function
        layers, first = len(routers), routers[0]
        # NaN shows where a tap has never fired.
        self._logits = torch.full((layers, max_tokens, first.global_num_experts), torch.nan, device=device)
        self._ids = torch.zeros(layers, max_tokens, first.top_k, dtype=torch.int64, device=device)
        for layer, router in enumerate(routers):
            router._compute_routing = self._tap(layer, router._compute_routing)

    def _tap(self, layer: int, compute: Callable[..., Any]) -> Callable[..., Any]:
        logits, ids = self._logits[layer], self._ids[layer]

        def compute_and_copy(hidden: torch.Tensor, router_logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            weights, chosen = compute(hidden, router_logits, *args, **kwargs)
            tokens = len(router_logits)
            logits[:tokens].copy_(router_logits)
            ids[:tokens].copy_(chosen)
            return weights, chosen

        return compute_and_copy

    def rows(self, positions: torch.Tensor) -> NDArray[np.uint16]:
        """[n, L, 2K] for the token positions [n] of the latest step: expert ids, then natural log-scores as float16.

        A softmax score is over all experts, whatever the model does to the weights of the chosen ones.
        """
        logits, ids = self._logits[:, positions], self._ids[:, positions]
        if self._score_function == "sigmoid":
            scores = logsigmoid(logits.gather(-1, ids))
        elif self._score_function == "softmax_topk":
            scores = logits.gather(-1, ids).log_softmax(-1)
        else:
            scores = logits.log_softmax(-1).gather(-1, ids)
        packed = torch.cat([ids.to(torch.int16), scores.half().view(torch.int16)], dim=-1)
        rows: NDArray[np.uint16] = packed.transpose(0, 1).contiguous().cpu().numpy().view(np.uint16)
        return rows


class RouterWorker(CPUWorker):  # type: ignore[misc]  # vLLM has no types for mypy here
    """The CPU worker with router taps, and with weight updates that leave nothing stale."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)
        runner = self.model_runner
        routed = {
            extract_layer_index(layer.layer_name): layer.router
            for layer in runner.get_model().modules()
            if isinstance(layer, MoERunner)
        }
        self._routers = dict(sorted(routed.items()))
        if not self._routers:
            return
        self._capture = RouterCapture(
            list(self._routers.values()), self._score_function(), runner.max_num_tokens, self.device
        )
        prepare = runner._prepare_inputs

        def prepare_and_keep(*args: Any, **kwargs: Any) -> Any:
            prepared = prepare(*args, **kwargs)
            self._positions = prepared[0]  # of the last token of each request, whose logits are sampled from
            return prepared

        runner._prepare_inputs = prepare_and_keep

    def _score_function(self) -> str:
        """By `shared.trajectory.ScoreFunction`, or a name of vLLM's that is not in it."""
        router = next(iter(self._routers.values()))
        family = self.model_config.hf_text_config.model_type
        if family == "gpt_oss":
            return "softmax_topk"
        if getattr(router, "custom_routing_function", None) is not None:
            return f"the function of {family}"
        return str(router.scoring_func)

    def describe_routers(self) -> tuple[list[int], int, int, str] | None:
        """The fields of a `shared.trajectory.RouterLayout`, in values that travel; None for a dense model."""
        if not self._routers:
            return None
        first = next(iter(self._routers.values()))
        return list(self._routers), first.global_num_experts, first.top_k, self._score_function()

    @torch.inference_mode()
    def sample_tokens(self, grammar_output: Any) -> Any:
        output = super().sample_tokens(grammar_output)
        if self._routers and isinstance(output, ModelRunnerOutput) and output.sampled_token_ids:
            rows = self._capture.rows(self._positions)
            output.aux_output_connector_output = StepRows(rows, output.req_id_to_index)
        return output

    def load_policy(self, files: list[str]) -> None:
        """Replaces the weights in place by those in the safetensors `files`; no step may run meanwhile.

        Raises:
            RuntimeError: a layer got no weights. The model is then unusable.
        """
        model = self.model_runner.get_model()
        for layer in model.modules():
            if isinstance(layer, RoutedExperts):
                # While it has a kernel, vLLM copies new expert weights into place without packing them for it.
                layer.quant_method.moe_kernel = None
        initialize_layerwise_reload(model)
        model.load_weights(_tensors(files))
        stale = [name for name, layer in model.named_modules() if self._is_stale(layer)]
        finalize_layerwise_reload(model, self.model_config)
        if stale:
            raise RuntimeError(f"these layers got no weights: {', '.join(stale)}")
        for layer in model.modules():
            if isinstance(layer, ParallelLMHead):
                # A head tied to the embedding loads nothing itself, but samples from a packed copy of it.
                layer.quant_method.process_weights_after_loading(layer)

    def _is_stale(self, layer: torch.nn.Module) -> bool:
        """Whether the update under way has passed by a layer that has weights of its own."""
        if isinstance(layer, RotaryEmbeddingBase) or is_deferred_attention_layer(layer):
            return False
        if isinstance(layer, ParallelLMHead) and self.model_config.hf_text_config.tie_word_embeddings:
            return False
        info = get_layerwise_info(layer)
        return bool(info.can_load() and info.load_numel <= 0 < info.load_numel_total)


def _tensors(files: list[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Opens all files before the first tensor: a mapped file can be deleted, an unopened one cannot."""
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(Path(file), framework="pt")) for file in files]
        for tensors in opened:
            for name in tensors.keys():  # noqa: SIM118  # no mapping
                yield name, tensors.get_tensor(name)


class _RowsByRequest:
    """In place of vLLM's connector for auxiliary outputs, on the side of the scheduler."""

    def __init__(self) -> None:
        self._rows: dict[str, list[NDArray[np.uint16]]] = {}

    def build_connector_meta(self, scheduler_output: Any, requests: Any) -> None:
        """The worker need not be told anything."""

    def take_output(self, request: Any, output: StepRows | None) -> NDArray[np.uint16] | None:
        """Keeps the row of a request's new token; all its rows [T, L, 2K] where that was the last."""
        if output is None:
            return None
        rows = self._rows.setdefault(request.request_id, [])
        rows.append(output.rows[output.index_of[request.request_id]])
        return np.stack(rows) if request.is_finished() else None

    def request_finished(self, request: Any) -> None:
        """vLLM calls this for a preempted request too, whose rows must stay."""
        if request.is_finished():
            self._rows.pop(request.request_id, None)

    def reset(self) -> None:
        """vLLM calls this with the prefix cache, which these rows do not depend on."""


class RouterScheduler(Scheduler):  # type: ignore[misc]  # vLLM has no types for mypy here
    """The scheduler with a collector of router rows."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Ctrl-C reaches the whole process group, but the parent still lets its requests finish.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        atexit.register(os._exit, 0)  # Python would free a million objects one by one for 2 s
        super().__init__(*args, **kwargs)
        self.aux_output_connector = _RowsByRequest()
