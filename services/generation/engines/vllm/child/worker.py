"""What runs inside the child of the vLLM engine: router taps, the carrier of their rows, and weight updates.

Written for vLLM 0.32.0. The worker taps each MoE router, packs one row per sampled token and attaches the rows to the
step's output; the scheduler collects them per request and hands them over when the request ends, in the channel that
vLLM has for expert ids. Tokens and rows leave a step together, so they are aligned by construction, and a preempted
request's recomputation never overwrites what the behaviour policy did.

What is exported is named by `additional_config["router_export"]`, a `routershift.trajectory.RouterExport`. Only
vLLM's own processes import this module: it imports vLLM.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import extract_layer_index
from vllm.platforms import current_platform
from vllm.v1.worker.cpu_worker import CPUWorker
from vllm.v1.worker.gpu_worker import Worker

from routershift.routing.families import family_of
from routershift.trajectory import RouterExport
from services.generation.engines.vllm.child.arrival import Arrival
from services.generation.engines.vllm.child.probe import is_finite
from services.generation.engines.vllm.child.reload import reload
from services.generation.engines.vllm.child.runners import RunnerAdapter, V1Adapter, V2Adapter
from services.generation.engines.vllm.child.taps import BufferTaps, EagerTaps, RowPacker, Taps
from shared.models.folder import weight_files

_PlatformWorker: Any = CPUWorker if current_platform.is_cpu() else Worker


class RouterWorker(_PlatformWorker):  # type: ignore[misc]  # vLLM has no types for mypy here
    """The platform's worker with router taps, and with weight updates that leave nothing stale."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        self._allow_amx()
        self._ignored = set(self.vllm_config.additional_config["ignored_tensors"])
        with _without(self._ignored):
            super().load_model(*args, **kwargs)
        runner = self.model_runner
        routed = {
            extract_layer_index(layer.layer_name): layer.router
            for layer in runner.get_model().modules()
            if isinstance(layer, MoERunner)
        }
        self._routers = dict(sorted(routed.items()))
        self._adapter: RunnerAdapter | None = None
        self._arrival: Any = None  # an Arrival, from its beginning until it is loaded
        self._opened: list[Any] = []  # safetensors files, until they are loaded
        # What serves, to go back to: open files, which may be deleted meanwhile, or tensors in the host's memory.
        self._serving: list[Any] | dict[str, torch.Tensor] = [
            safe_open(file, framework="pt") for file in weight_files(Path(self.model_config.model))
        ]
        export = RouterExport(self.vllm_config.additional_config["router_export"])
        if self._routers and export is not RouterExport.NONE:
            packer = RowPacker(self._tap(export), export, self._score_function(), self._first.global_num_experts)
            self._adapter = (V2Adapter if self.use_v2_model_runner else V1Adapter)(runner, packer)

    def _allow_amx(self) -> None:
        """Asks Linux for AMX, which vLLM uses for 16-bit numbers without asking: it would die of its first instruction.

        Raises:
            RuntimeError: Linux refuses.
        """
        narrow = self.model_config.dtype.itemsize < 4
        if current_platform.is_cpu() and narrow and torch.cpu._is_amx_tile_supported() and not torch.cpu._init_amx():
            raise RuntimeError("Linux refuses AMX to this process; set generation.vllm.dtype to float32")

    @property
    def _first(self) -> Any:
        return next(iter(self._routers.values()))

    def _tap(self, export: RouterExport) -> Taps:
        routers, logits = list(self._routers.values()), export is not RouterExport.IDS
        if self.model_config.enforce_eager:
            return EagerTaps(routers, logits)
        return BufferTaps(routers, logits, self.model_runner.max_num_tokens, self.device)

    def _score_function(self) -> str:
        """By `routershift.trajectory.ScoreFunction`, or a name of vLLM's that is not in it."""
        model_type = self.model_config.hf_text_config.model_type
        family = family_of(model_type)
        if family is not None and not family.vllm_names_scores:
            return family.score_function.value
        if getattr(self._first, "custom_routing_function", None) is not None:
            return f"the function of {model_type}"
        return str(self._first.scoring_func)

    def describe_routers(self) -> tuple[list[int], int, int, str] | None:
        """The fields of a `routershift.trajectory.RouterLayout`, in values that travel; None for a dense model."""
        if not self._routers:
            return None
        return list(self._routers), self._first.global_num_experts, self._first.top_k, self._score_function()

    @torch.inference_mode()
    def sample_tokens(self, grammar_output: Any) -> Any:
        output = super().sample_tokens(grammar_output)
        return output if self._adapter is None else self._adapter.attach(output)

    def begin_arrival(self, rendezvous: list[Any], first_rank: int, specs: list[list[Any]]) -> None:
        """Begins to take weights over the network into this process's memory; see `Arrival`."""
        serving = partial(self._tensors, self._serving)
        self._arrival = Arrival(rendezvous, first_rank + self.rank, specs, torch.device(self.device), serving)

    def arrival(self) -> tuple[str, str] | None:
        """How that went; None while it goes on."""
        answer: tuple[str, str] | None = self._arrival.answer
        return answer

    def open_policy(self, files: list[str]) -> str | None:
        """Maps safetensors files, which may be deleted from then on; says why where one cannot be opened."""
        self._arrival = None
        try:
            self._opened = [safe_open(Path(file), framework="pt") for file in files]
        except (OSError, SafetensorError) as error:
            return str(error)
        return None

    def load_policy(self) -> bool:
        """Replaces the weights in place, by those that have arrived or are open; no step may run meanwhile.

        False where a probe of them is not finite: `restore_policy` is to follow, then.

        Raises:
            RuntimeError: a layer got no weights. The model is then unusable.
        """
        new = self._opened if self._arrival is None else self._arrival.tensors
        self._arrival, self._opened = None, []
        reload(self.model_runner.get_model(), self.model_config, self._tensors(new))
        finite = self.is_finite()
        if finite:
            self._serving = {name: t.cpu() for name, t in new.items()} if isinstance(new, dict) else new
        return finite

    def is_finite(self) -> bool:
        """Whether what the weights compute is; no step may run meanwhile."""
        return is_finite(self)

    def restore_policy(self) -> None:
        """Goes back to the weights before, which are loaded again. Raises RuntimeError where they are not finite."""
        reload(self.model_runner.get_model(), self.model_config, self._tensors(self._serving))
        if not self.is_finite():
            raise RuntimeError("the weights before are no longer finite")

    def _tensors(self, source: list[Any] | dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors that the model has, from open files or by name."""
        if isinstance(source, dict):
            yield from source.items()
            return
        for tensors in source:
            for name in tensors.keys():  # noqa: SIM118  # no mapping
                if name not in self._ignored:
                    yield name, tensors.get_tensor(name)


@contextmanager
def _without(ignored: set[str]) -> Iterator[None]:
    """While a model is loaded from its folder, leaves out tensors that it does not have."""
    everything = DefaultModelLoader.get_all_weights

    def those_of_the_model(*args: Any) -> Iterator[tuple[str, torch.Tensor]]:
        return ((name, tensor) for name, tensor in everything(*args) if name not in ignored)

    DefaultModelLoader.get_all_weights = those_of_the_model
    try:
        yield
    finally:
        DefaultModelLoader.get_all_weights = everything
