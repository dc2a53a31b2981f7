"""The trainer: turns groups of scored rollouts into optimizer updates. Knows neither gRPC nor Redis."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging as transformers_logging

from services.learner.advantages import group_advantages
from services.learner.batch import Batch, Group, Sample, Weighted, collate, micro_batches
from services.learner.diagnostics import Diagnostics
from services.learner.objectives import OBJECTIVES, Clipping, PolicyBatch
from services.learner.router_shift import RouterShift, clip_log_gamma, require_layout
from services.learner.settings import LearnerSettings
from shared.errors import CorruptDataError, InvalidInputError
from shared.routers import check_layout, layout_of, routers_of
from shared.trajectory import Completion, RouterLayout

__all__ = ["Group", "Sample", "StepReport", "Trainer"]

NON_FINITE = "non_finite"
_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"


@dataclass(frozen=True, slots=True)
class StepReport:
    """What a batch did."""

    step: int  # batches done, this one included unless it was skipped
    skipped: str | None  # why nothing was learnt from it
    diagnostics: Mapping[str, float]


class Trainer:
    """A model, its optimizer and the objective.

    Everything random is drawn from (seed, step), so a resumed trainer goes on bit for bit as if it had not stopped.
    """

    step: int  # batches done; the version of the weights is the same number
    layout: RouterLayout | None

    def __init__(self, settings: LearnerSettings, model_folder: Path, seed: int, temperature: float = 1.0) -> None:
        """`temperature` is that of the rollouts.

        Raises PreconditionError for router shift on a model without known routers."""
        torch.set_num_threads(settings.threads)
        transformers_logging.disable_progress_bar()
        self.step = 0
        self._settings = settings
        self._seed = seed
        self._temperature = temperature
        self._device = torch.device(settings.device)
        self._model, self._export_dtype = _load_model(model_folder, settings, self._device)
        self.layout = layout_of(self._model)
        self._shift: RouterShift | None = None
        if settings.uses_router_shift:
            self.layout = require_layout(self._model)
            self._shift = RouterShift(routers_of(self._model), settings.layer_aggregation)
        self._parameters = dict(self._model.named_parameters())
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(),
            betas=(settings.adam_beta1, settings.adam_beta2),
            weight_decay=settings.weight_decay,
        )
        self._objective = OBJECTIVES[settings.algorithm]
        self._clipping = Clipping(*settings.clip_range, settings.apply)

    def check(self, group: Group) -> None:
        """Raises InvalidInputError or CorruptDataError, naming the sample, where a group cannot be trained on."""
        for i, sample in enumerate(group.samples):
            try:
                self._check(sample)
            except (InvalidInputError, CorruptDataError) as error:
                raise type(error)(f"group {group.group_id}, sample {i}: {error}") from None

    def train_step(self, groups: Sequence[Group]) -> StepReport:
        """Takes every update of a batch. Groups must have passed `check`.

        An update whose loss or gradient is not finite is left out. A batch with no other update is skipped: `step`,
        weights and optimizer are then as before.
        """
        settings = self._settings
        diagnostics = Diagnostics(settings.gamma_min, self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (self.step + 1) / (settings.warmup_steps + 1))
        taken = 0
        for minibatch in self._minibatches(groups):
            taken += self._update(minibatch, diagnostics, is_first=taken == 0)
        self.step += taken > 0
        return StepReport(self.step, None if taken else NON_FINITE, diagnostics.result())

    def export_weights(self, folder: Path) -> None:
        """Writes model.safetensors with the tensor names and the dtype of the model folder."""
        cast: dict[int, Tensor] = {}  # one copy for tied weights: transformers knows them by their shared memory
        state = {
            name: cast.setdefault(tensor.data_ptr(), tensor.to(self._export_dtype))
            for name, tensor in self._model.state_dict().items()
        }
        self._model.save_pretrained(folder, state_dict=state)

    def save(self, folder: Path, meta: Mapping[str, Any]) -> None:
        """Writes all that `load` needs to go on bit for bit, as safetensors and JSON; `meta` is given back by it."""
        save_file({name: p.detach().contiguous() for name, p in self._parameters.items()}, folder / _MODEL)
        moments = {
            f"{name}/{key}": value.contiguous()
            for name, parameter in self._parameters.items()
            for key, value in self._optimizer.state[parameter].items()
        }
        save_file(moments, folder / _OPTIMIZER)
        state = {"step": self.step, "seed": self._seed, "meta": dict(meta)}
        (folder / _STATE).write_text(json.dumps(state, indent=1))

    def load(self, folder: Path) -> dict[str, Any]:
        """Goes on from what `save` wrote, and returns its `meta`.

        Raises:
            InvalidInputError: the checkpoint is of another model.
        """
        weights = load_file(folder / _MODEL, device=str(self._device))
        if {n: t.shape for n, t in weights.items()} != {n: p.shape for n, p in self._parameters.items()}:
            raise InvalidInputError(f"checkpoint {folder} is of another model; use its model folder or another run id")
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(weights[name])
        self._optimizer.state.clear()
        for key, value in load_file(folder / _OPTIMIZER, device=str(self._device)).items():
            name, _, field = key.rpartition("/")
            # AdamW keeps its update counts on the CPU, whatever the device of the parameters.
            self._optimizer.state[self._parameters[name]][field] = value.cpu() if field == "step" else value
        state = json.loads((folder / _STATE).read_text())
        self.step = int(state["step"])
        self._seed = int(state["seed"])
        meta: dict[str, Any] = state["meta"]
        return meta

    def _minibatches(self, groups: Sequence[Group]) -> Iterator[list[Weighted]]:
        """Each epoch's groups in an order of its own, cut into shares; a group is never divided."""
        advantages = [group_advantages([sample.reward for sample in group.samples]) for group in groups]
        order = np.random.default_rng((self._seed, self.step))
        for _ in range(self._settings.epochs):
            shares = np.array_split(order.permutation(len(groups)), min(self._settings.minibatches, len(groups)))
            for share in shares:
                yield [
                    Weighted(sample, float(advantage))
                    for i in share
                    for sample, advantage in zip(groups[i].samples, advantages[i], strict=True)
                ]

    def _update(self, minibatch: Sequence[Weighted], diagnostics: Diagnostics, is_first: bool) -> bool:
        """One optimizer update; False, and nothing changed, where loss or gradient is not finite."""
        self._optimizer.zero_grad()
        total = torch.zeros((), device=self._device)
        for samples in micro_batches(minibatch, self._settings.micro_batch_tokens):
            batch = collate(samples, self._shift is not None, self._device)
            loss = self._loss(batch, diagnostics, is_first).sum() / len(minibatch)
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), self._settings.max_grad_norm)
        diagnostics.add_update(norm)
        if not torch.isfinite(total + norm):
            return False
        self._optimizer.step()
        return True

    def _loss(self, batch: Batch, diagnostics: Diagnostics, is_first: bool) -> Tensor:
        """Loss per response, [B]."""
        if self._shift is None or batch.routes is None:
            logprobs, entropy = self._logprobs(batch)
            shift, log_gamma = None, None
        else:
            with self._shift.recording(batch.routes) as recording:
                logprobs, entropy = self._logprobs(batch)
            shift = recording.result()
            log_gamma = _padded(clip_log_gamma(shift.log_gamma, self._settings.gamma_min), batch.mask)
        policy = PolicyBatch(logprobs, batch.behaviour_logprobs, batch.advantages, batch.mask, log_gamma)
        result = self._objective(policy, self._clipping)
        diagnostics.add_forward(batch, policy, result, entropy, shift, is_first)
        return result.loss

    def _logprobs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """log pi_theta of the response tokens, [B, T] float32, and the entropy there, [R] nats, without gradient.

        Padding is on the right and attention causal, so no response token sees it and no mask is needed.
        """
        first = int(batch.positions[batch.mask].min())
        kept = batch.input_ids.shape[1] - first
        logits = self._model(input_ids=batch.input_ids, use_cache=False, logits_to_keep=kept).logits
        response = batch.mask.nonzero()[:, 0]
        rows = logits[response, batch.positions[batch.mask] - first]
        log_probabilities = (rows.float() / self._temperature).log_softmax(dim=-1)
        chosen = log_probabilities.gather(1, batch.targets[batch.mask][:, None])[:, 0]
        with torch.no_grad():
            entropy = -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
        return _padded(chosen, batch.mask), entropy

    def _check(self, sample: Sample) -> None:
        completion, config = sample.completion, self._model.config
        tokens = completion.token_ids.size
        lengths = {"logprobs": completion.logprobs.size, "versions": sum(span.tokens for span in completion.versions)}
        if tokens == 0 or sample.prompt_ids.size == 0:
            raise InvalidInputError("prompt_ids or token_ids is empty; both need at least one token")
        if wrong := {name: length for name, length in lengths.items() if length != tokens}:
            raise CorruptDataError(f"{wrong} entries for {tokens} tokens; expected one for each")
        if (whole := sample.prompt_ids.size + tokens) > config.max_position_embeddings:
            raise InvalidInputError(
                f"prompt and response have {whole} tokens; the model takes {config.max_position_embeddings}"
            )
        for field, ids in (("prompt_ids", sample.prompt_ids), ("token_ids", completion.token_ids)):
            if ids.min() < 0 or ids.max() >= config.vocab_size:
                raise InvalidInputError(
                    f"{field} spans {ids.min()} to {ids.max()}; the model has tokens 0 to {config.vocab_size - 1}"
                )
        if not (np.isfinite(completion.logprobs).all() and np.isfinite(sample.reward)):
            raise CorruptDataError("logprobs or reward is not finite; the rollout cannot be weighed")
        if self._shift is not None and self.layout is not None:
            self._check_trace(completion, self.layout)

    def _check_trace(self, completion: Completion, layout: RouterLayout) -> None:
        trace = completion.router_trace
        if trace is None:
            raise InvalidInputError("router_trace is absent; router shift needs it, generation must record routes")
        check_layout(trace.layout, layout)
        shape = (completion.token_ids.size, len(layout.layer_ids), layout.top_k)
        if trace.expert_ids.shape != shape or trace.log_scores.shape != shape:
            raise CorruptDataError(
                f"router_trace has shapes {trace.expert_ids.shape} and {trace.log_scores.shape}; expected {shape}"
            )
        if not np.isfinite(trace.log_scores).all():
            raise CorruptDataError("router_trace.log_scores is not finite; the route cannot be weighed")
        if trace.expert_ids.max() >= layout.num_experts:
            raise CorruptDataError(
                f"router_trace.expert_ids holds {trace.expert_ids.max()}; the model has {layout.num_experts} experts"
            )


def _load_model(folder: Path, settings: LearnerSettings, device: torch.device) -> tuple[PreTrainedModel, torch.dtype]:
    """The model in float32, and the dtype that its folder has."""
    config = AutoConfig.from_pretrained(folder)
    # Noise in the training forward would look like policy shift: the sampler has none.
    for noise in ("attention_dropout", "router_jitter_noise"):
        if hasattr(config, noise):
            setattr(config, noise, 0.0)
    dtype = config.dtype or torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32).to(device)
    model.train()
    if settings.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model, dtype


def _padded(values: Tensor, mask: Tensor) -> Tensor:
    """[R] to [B, T], 0 on padding."""
    return torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values)
