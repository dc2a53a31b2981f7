"""The model that learns: its forward pass over packed rows, and its weights on disk."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from routershift.routing.routers import layout_of, require_layout, routers_of
from services.learner.data.collate import Batch
from services.learner.distributed import context_parallel, expert_parallel, fsdp
from services.learner.distributed.ranks import Ranks
from services.learner.model import export, isolation, lora
from services.learner.model.attention import Attention, choose
from services.learner.model.head import Head, Wanted
from services.learner.model.parts import Parts
from services.learner.model.source import Source
from services.learner.settings import LearnerSettings
from shared.models.loading import empty_model, load_config, load_model
from shared.models.tensors import model_tensors, require_float
from shared.settings import RolloutSettings, RunSettings
from shared.weights.published import ADAPTER

# Noise in the training forward, by its names in configs, would look like policy shift: the sampler has none.
_NOISE = (
    "activation_dropout",
    "attention_dropout",
    "attn_pdrop",
    "dropout",
    "embd_pdrop",
    "embedding_dropout",
    "hidden_dropout",
    "resid_pdrop",
    "residual_dropout",
    "router_jitter_noise",
)


class Policy:
    """A causal language model on this rank's device, sharded where there are several ranks."""

    def __init__(self, settings: LearnerSettings, run: RunSettings, rollout: RolloutSettings, ranks: Ranks) -> None:
        """Freezes the routers and adds adapters, as the settings say.

        Raises:
            PreconditionError: a setting is of routers, and the model has none that are known; or what `lora.add_lora`
                raises for a family that it does not know.
            PreconditionError, InvalidInputError: of `expert_parallel.check` and `context_parallel.check`.
            PreconditionError, MissingDependencyError: of `OptimizerSettings.check`.
        """
        transformers_logging.disable_progress_bar()
        self._temperature = rollout.temperature
        self._ranks = ranks
        self.model, self.attention, self._export_dtype = load(run.require_model(), settings, ranks.size > 1)
        settings.optimizer.check(str(self._export_dtype).removeprefix("torch."))
        self.layout = layout_of(self.model)
        expert_parallel.check(self.model, ranks.shape)
        context_parallel.check(self.model, self.attention.is_flat, ranks.shape)
        self.attention = replace(self.attention, context=ranks.context)
        self.model.train()
        if settings.activation_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        if settings.freeze_router or settings.router_precision:
            require_layout(self.model)
        if settings.freeze_router:
            for router in routers_of(self.model).values():
                router.requires_grad_(False)
        self._lora, self._uses_lora, self._base = settings.lora, settings.lora.rank > 0, str(run.model)
        if self._uses_lora:
            lora.add_lora(self.model, settings.lora, run.seed)
        self._folder, self._seed = run.require_model(), run.seed
        self._head = Head(self.model, self.attention, ranks, settings.head_chunk_bytes)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of a forward and a backward pass, attention left out (arXiv 2001.08361, table 1).

        Two for each weight that computes for a token, two more for the gradient of its input, and two for its own where
        it is trained. A token takes K of E experts, and one row of the embeddings, which costs nothing.
        """
        experts = self.layout.top_k / self.layout.num_experts if self.layout else 1.0
        head = self.model.get_output_embeddings().weight
        looked_up = {id(self.model.get_input_embeddings().weight)} - {id(head)}
        flops: float = sum(
            (6 if p.requires_grad else 4) * p.numel() * (experts if ".experts." in name else 1.0)
            for name, p in self.model.named_parameters()
            if id(p) not in looked_up
        )
        return flops

    def place(self, settings: LearnerSettings) -> None:
        """Moves the model to its device, sharded where it must be. Hooks on its modules come before.

        Raises:
            PreconditionError: packed sequences see each other, among several ranks or with the flash attention of this
                machine.
        """
        kept = self._kept_wide(settings)
        if settings.precision == "bfloat16":
            _narrow(self.model, self._export_dtype, kept)
        source = Source(self._folder, self._lora, self._seed) if self._ranks.size > 1 else None
        routers = getattr(torch, settings.router_precision) if settings.router_precision else None
        fsdp.shard(self.model, self._ranks, getattr(torch, settings.precision), routers, source)
        if settings.optimizer.offload == "masters":
            fsdp.sum_gradients_in_float32(self.model)
        if self.attention.is_flash:
            self.attention.set_flash_on(self.model)
        if self._ranks.size > 1:
            self._head.find_scale()
        if self._ranks.size > 1 or self.attention.is_flash:
            isolation.check(self.model, self.attention)

    def _kept_wide(self, settings: LearnerSettings) -> set[nn.Parameter]:
        """The parameters that the device holds in float32 though the pass may be in bfloat16: trained ones.

        Where their masters are in host memory, only routers that compute in a precision of their own.
        """
        if settings.optimizer.offload == "masters":
            routers = routers_of(self.model).values() if settings.router_precision else ()
            trained = {p for router in routers for p in router.parameters()}
        else:
            trained = set(self.model.parameters())
        return {p for p in trained if p.requires_grad}

    def logprobs(self, batch: Batch, entropy_gradient: bool = False) -> tuple[Tensor, Tensor]:
        """log pi_theta of the response tokens, [B, T] float32, and the entropy of their distributions, [B, T] nats.

        The entropy carries gradient only where it is asked for. Where ranks divide the row, every rank has both whole.
        """
        wanted = Wanted(batch.rows, batch.targets, self._temperature, entropy_gradient)
        logprobs, entropy = self._head.logprobs(batch.input_ids, batch.position_ids, wanted)
        if self.attention.context is not None and (part := batch.part) is not None:
            own = torch.stack((logprobs, entropy), dim=1)
            logprobs, entropy = self.attention.context.whole(own, part.tokens, part.of_tokens).unbind(dim=1)
        return batch.padded(logprobs), batch.padded(entropy)

    def parts(self) -> Parts:
        """What this rank holds, as the model folder has it. The model has been placed."""
        return Parts(self.model, self._ranks, self._export_dtype)

    def export(self, folder: Path) -> None:
        """Writes model.safetensors, or shards of it, with the tensor names and the dtype of the model folder.

        Every rank takes part, rank 0 writes. LoRA adapters are merged, and stand alone in the folder `ADAPTER` too.
        """
        tensors = self.parts().whole()
        adapters = lora.factors(self.model, is_kept=self._ranks.rank == 0) if self._uses_lora else {}
        try:
            if self._ranks.rank == 0:
                export.write(folder, tensors)
        finally:
            for _ in tensors:  # each rank takes part in all, also where the disk has refused
                pass
        if self._ranks.rank != 0:
            return
        self.model.config.save_pretrained(folder)
        if self._uses_lora:
            lora.save_adapters(folder / ADAPTER, adapters, self.model, self._lora, self._base)


def _narrow(model: PreTrainedModel, dtype: torch.dtype, kept: Collection[nn.Parameter]) -> None:
    """Holds weights in the dtype of the model folder, which has no more of them.

    A pass in bfloat16 computes the same bits: it rounds them where it gathers them, as it rounds float32.

    Args:
        kept: those that stay as they are.
    """
    for parameter in set(model.parameters()) - set(kept):
        parameter.data = parameter.data.to(dtype)


class Reference:
    """The model that the run began with, for the KL divergence from it.

    With LoRA that is the policy without its adapters; else it is a second copy of the weights.
    """

    def __init__(
        self, policy: Policy, settings: LearnerSettings, run: RunSettings, rollout: RolloutSettings, ranks: Ranks
    ) -> None:
        self._policy = policy
        self._frozen: Policy | None = None
        if not settings.lora.rank:
            self._frozen = Policy(settings, run, rollout, ranks)
            self._frozen.model.requires_grad_(False)
            self._frozen.place(settings)

    @torch.no_grad()
    def logprobs(self, batch: Batch) -> Tensor:
        """[B, T] float32, without gradient."""
        if self._frozen is not None:
            return self._frozen.logprobs(batch)[0]
        with lora.without_adapters(self._policy.model):
            return self._policy.logprobs(batch)[0]


def load(
    folder: Path, settings: LearnerSettings, is_empty: bool = False
) -> tuple[PreTrainedModel, Attention, torch.dtype]:
    """The model in float32 on the CPU, its attention, and the dtype that its folder has. An empty one is on the meta
    device.

    Raises:
        PreconditionError: packed sequences would see each other, what `learner.attn_implementation` asks for cannot
            be had, the weights are quantised, or the folder wants its own code run.
        NotFoundError, CorruptDataError, InvalidInputError: of `model_tensors`.
    """
    require_float(folder)
    model_tensors(folder)
    config = load_config(folder)
    for noise in _NOISE:
        if hasattr(config, noise):
            setattr(config, noise, 0.0)
    dtype = config.dtype or torch.float32
    if is_empty:
        with torch.device("meta"):
            model = empty_model(config, folder, dtype=torch.float32)
    else:
        model = load_model(AutoModelForCausalLM, folder, config=config, dtype=torch.float32)
    attention = choose(model, settings)
    attention.set_on(model)
    isolation.isolate(model)
    if not is_empty:
        isolation.check(model, attention)
    return model, attention, dtype
