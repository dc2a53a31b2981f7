"""Rollouts as generation would record them, from plain transformers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, PreTrainedModel

from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.trajectory import Completion, FinishReason, Role, RouterTrace, Segment, Trajectory, VersionSpan
from services.learner.data.batch import Group, MicroBatch, Sample, Weighted, pack
from services.learner.data.collate import Batch, collate
from services.learner.model.isolation import isolate
from shared.models.loading import LOADING
from tests.support.models import EXPERTS, TOP_K, VOCABULARY

# By `model_type`; all others softmax.
_SCORE_FUNCTIONS = {
    "deepseek_v3": ScoreFunction.SIGMOID,
    "glm4_moe": ScoreFunction.SIGMOID,
    "gpt_oss": ScoreFunction.SOFTMAX_TOPK,
    "glm_moe_dsa": ScoreFunction.SIGMOID,
    "minimax_m2": ScoreFunction.SIGMOID,
    "llama4_text": ScoreFunction.SIGMOID,
}


def load(folder: Path) -> PreTrainedModel:
    """In float32, ready for packed rows."""
    with LOADING:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    isolate(model)
    return model


def perturbed(model: PreTrainedModel, scale: float, seed: int = 0) -> PreTrainedModel:
    """The same model some updates later: every weight moved a little, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


def layout(
    layer_ids: tuple[int, ...] = (0, 1, 2), score_function: ScoreFunction = ScoreFunction.SOFTMAX
) -> RouterLayout:
    return RouterLayout(layer_ids, EXPERTS, TOP_K, score_function)


# Consecutive tokens of a response: whether the model sampled them, and their ids.
Piece = tuple[bool, list[int]]


@dataclass(frozen=True)
class Routed:
    """What the routers of a model did with N tokens."""

    layout: RouterLayout
    logits: torch.Tensor  # [N, L, E]
    expert_ids: torch.Tensor  # [N, L, K]

    @property
    def log_scores(self) -> torch.Tensor:
        """[N, L, K]"""
        if self.layout.score_function is ScoreFunction.SOFTMAX:
            return self.logits.log_softmax(-1).gather(-1, self.expert_ids)
        chosen = self.logits.gather(-1, self.expert_ids)
        return (
            chosen.log_softmax(-1) if self.layout.score_function is ScoreFunction.SOFTMAX_TOPK else logsigmoid(chosen)
        )


@contextmanager
def routing(model: PreTrainedModel) -> Iterator[list[Routed]]:
    """Appends what the routers do in each forward pass of the body; nothing for a dense model."""
    layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    passes: list[Routed] = []

    def keep(layer: int) -> Any:
        def hook(router: Any, inputs: Any, output: Any) -> None:
            if len(output) == 3:
                layers[layer] = output[0], output[2]
            else:  # Llama-4: (scores, 0 where not chosen; logits)
                layers[layer] = output[1], output[0].nonzero()[:, 1].view(-1, TOP_K)

        return hook

    def end(*_: Any) -> None:
        if layers:
            logits, ids = (torch.stack(part, dim=1) for part in zip(*layers.values(), strict=True))
            function = _SCORE_FUNCTIONS.get(model.config.model_type, ScoreFunction.SOFTMAX)
            passes.append(Routed(layout(tuple(layers), function), logits, ids))
            layers.clear()

    hooks = [
        module.register_forward_hook(keep(int(name.split(".")[2])))
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Router")
    ]
    hooks.append(model.register_forward_hook(end))
    try:
        yield passes
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def record(
    model: PreTrainedModel, prompt: Sequence[int], tokens: Sequence[int], reward: float = 0.0, version: int = 0
) -> Sample:
    """What a behaviour policy with these weights records of a response."""
    with routing(model) as passes:
        logits = model(torch.tensor([[*prompt, *tokens[:-1]]]), use_cache=False).logits
    start = len(prompt) - 1
    logprobs = logits[0, start:].log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    trace = None
    if passes:
        ids, scores = passes[0].expert_ids[start:], passes[0].log_scores[start:]
        trace = RouterTrace(passes[0].layout, ids.numpy().astype(np.uint8), scores.numpy().astype(np.float16))
    completion = Completion(
        index=0,
        token_ids=np.array(tokens, dtype=np.int32),
        logprobs=logprobs.numpy().astype(np.float32),
        versions=(VersionSpan(version, len(tokens)),),
        finish_reason=FinishReason.STOP,
        router_trace=trace,
    )
    return Sample(np.array(prompt, dtype=np.int32), Trajectory(completion), reward)


@torch.no_grad()
def record_episode(
    model: PreTrainedModel, prompt: Sequence[int], pieces: Sequence[Piece], reward: float = 0.0, version: int = 0
) -> Sample:
    """What a behaviour policy with these weights records of a response in which given tokens stand between its own."""
    whole = record(model, prompt, [token for _, tokens in pieces for token in tokens], reward, version).trajectory
    is_sampled = np.array([was_sampled for was_sampled, tokens in pieces for _ in tokens])
    everything, trace = whole.completion, whole.completion.router_trace
    completion = replace(
        everything,
        token_ids=everything.token_ids[is_sampled],
        logprobs=everything.logprobs[is_sampled],
        versions=(VersionSpan(version, int(is_sampled.sum())),),
        router_trace=None
        if trace is None
        else RouterTrace(trace.layout, trace.expert_ids[is_sampled], trace.scores[is_sampled]),
    )
    segments = tuple(
        Segment(Role.ASSISTANT if was_sampled else Role.TOOL, len(tokens), was_sampled)
        for was_sampled, tokens in pieces
    )
    trajectory = Trajectory(completion, segments, everything.token_ids[~is_sampled])
    return Sample(np.array(prompt, dtype=np.int32), trajectory, reward)


def random_episodes(model: PreTrainedModel, groups: int, samples: int, seed: int = 0) -> list[Group]:
    """As `random_groups`, each response of 1 to 3 turns with given tokens between them, and random rewards of turns."""
    rng = np.random.default_rng(seed)

    def tokens(longest: int) -> list[int]:
        return [int(t) for t in rng.integers(2, VOCABULARY, size=rng.integers(1, longest + 1))]

    made = []
    for i in range(groups):
        prompt, members = tokens(6), []
        for _ in range(samples):
            pieces = [(turn % 2 == 0, tokens(4)) for turn in range(2 * int(rng.integers(1, 4)) - 1)]
            sample = record_episode(model, prompt, pieces, reward=float(rng.random()))
            segments = [
                replace(each, reward=float(rng.random())) if each.is_sampled else each
                for each in sample.trajectory.segments
            ]
            members.append(replace(sample, trajectory=replace(sample.trajectory, segments=tuple(segments))))
        made.append(Group(f"group-{i}", tuple(members)))
    return made


def random_groups(
    model: PreTrainedModel,
    groups: int,
    samples: int,
    seed: int = 0,
    version: int = 0,
) -> list[Group]:
    """Random prompts, responses of 1 to 12 random tokens and random rewards."""
    rng = np.random.default_rng(seed)

    def tokens(longest: int) -> list[int]:
        return [int(t) for t in rng.integers(2, VOCABULARY, size=rng.integers(1, longest + 1))]

    made = []
    for i in range(groups):
        prompt = tokens(8)
        members = [record(model, prompt, tokens(12), float(rng.random()), version) for _ in range(samples)]
        made.append(Group(f"group-{i}", tuple(members)))
    return made


def micro_batch(groups: Sequence[Group]) -> MicroBatch:
    """All samples in rows that hold several of them."""
    return MicroBatch(tuple(pack([Weighted(sample, (1.0,)) for group in groups for sample in group.samples])))


def packed(groups: Sequence[Group]) -> Batch:
    """`micro_batch` in tensors, with routes, for a learner at version 0."""
    return collate(micro_batch(groups), with_routes=True, step=0)


def forward(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """Logits [N, W, V] of a packed micro-batch."""
    logits: torch.Tensor = model(batch.input_ids, position_ids=batch.position_ids, use_cache=False).logits
    return logits
