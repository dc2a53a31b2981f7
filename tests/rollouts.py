"""Rollouts as generation would record them, from plain transformers; no code of the learner."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from services.learner.batch import Group, Sample
from shared.trajectory import Completion, FinishReason, RouterLayout, RouterTrace, ScoreFunction, VersionSpan
from tests.models import EXPERTS, TOP_K, VOCABULARY


def load(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def perturbed(model: PreTrainedModel, scale: float, seed: int = 0) -> PreTrainedModel:
    """The same model some updates later: every weight moved a little, in place."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model


def layout(layer_ids: tuple[int, ...] = (0, 1, 2)) -> RouterLayout:
    return RouterLayout(layer_ids, EXPERTS, TOP_K, ScoreFunction.SOFTMAX)


@torch.no_grad()
def record(
    model: PreTrainedModel,
    prompt: Sequence[int],
    tokens: Sequence[int],
    reward: float = 0.0,
    version: int = 0,
    layer_ids: tuple[int, ...] | None = (0, 1, 2),
) -> Sample:
    """What a behaviour policy with these weights records of a response; `layer_ids` None for a dense model."""
    routed = layer_ids is not None
    output = model(torch.tensor([[*prompt, *tokens[:-1]]]), **({"output_router_logits": True} if routed else {}))
    start = len(prompt) - 1
    logprobs = output.logits[0, start:].log_softmax(-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    trace = None
    if layer_ids is not None:
        scores = torch.stack([logits[start:].log_softmax(-1) for logits in output.router_logits], dim=1)
        top = scores.topk(TOP_K, dim=-1)
        ids, top_scores = top.indices.numpy().astype(np.uint8), top.values.numpy().astype(np.float16)
        trace = RouterTrace(layout(layer_ids), ids, top_scores)
    return Sample(
        prompt_ids=np.array(prompt, dtype=np.int32),
        completion=Completion(
            index=0,
            token_ids=np.array(tokens, dtype=np.int32),
            logprobs=logprobs.numpy().astype(np.float32),
            versions=(VersionSpan(version, len(tokens)),),
            finish_reason=FinishReason.STOP,
            router_trace=trace,
        ),
        reward=reward,
    )


def random_groups(
    model: PreTrainedModel,
    groups: int,
    samples: int,
    seed: int = 0,
    version: int = 0,
    layer_ids: tuple[int, ...] | None = (0, 1, 2),
) -> list[Group]:
    """Random prompts, responses of 1 to 12 random tokens and random rewards."""
    rng = np.random.default_rng(seed)

    def tokens(longest: int) -> list[int]:
        return [int(t) for t in rng.integers(2, VOCABULARY, size=rng.integers(1, longest + 1))]

    made = []
    for i in range(groups):
        prompt = tokens(8)
        members = [record(model, prompt, tokens(12), float(rng.random()), version, layer_ids) for _ in range(samples)]
        made.append(Group(f"group-{i}", tuple(members)))
    return made
