"""What a completion must hold, from plain transformers and textbook definitions; no code of any engine."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from services.generation.engines.base import EngineSampling
from shared.trajectory import Completion, RouterLayout, versions_of
from tests.models import TOP_K


class Reference:
    """One model, evaluated one uncached sequence at a time."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        ).eval()

    @torch.no_grad()
    def forward(self, prompt: list[int], tokens: list[int]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """At the positions that predict `tokens`: logits [T, vocabulary], and router log-scores [T, L, E] if any."""
        routed = hasattr(self.model.config, "num_experts")
        options = {"output_router_logits": True} if routed else {}
        output = self.model(torch.tensor([[*prompt, *tokens[:-1]]]), **options)
        at = slice(len(prompt) - 1, None)
        logits = output.logits[0, at].double().numpy()
        if not routed:
            return logits, None
        scores = torch.stack([layer.double().log_softmax(-1) for layer in output.router_logits], dim=1)
        return logits, scores[at].numpy()


def log_distribution(logits: NDArray[np.float64], sampling: EngineSampling) -> NDArray[np.float64]:
    """[vocabulary]: what one row of logits is sampled from; the temperature-1 softmax for greedy."""
    if sampling.temperature == 0:
        return _log_softmax(logits)
    scaled = logits / sampling.temperature
    order = np.argsort(-scaled)
    kept = order[: sampling.top_k or None]
    masses = np.exp(_log_softmax(scaled[kept]))
    nucleus = kept[: int(np.searchsorted(np.cumsum(masses), sampling.top_p)) + 1]
    result = np.full_like(logits, -np.inf)
    result[nucleus] = _log_softmax(scaled[nucleus])
    return result


def check(
    completion: Completion, prompt: list[int], sampling: EngineSampling, references: dict[int, Reference]
) -> None:
    """Asserts that each token's log-prob and routes are those of the version that it says it is from."""
    tokens = completion.token_ids.tolist()
    versions = versions_of(completion.versions)
    assert len(tokens) == len(completion.logprobs) == len(versions) > 0
    forwards = {int(version): references[int(version)].forward(prompt, tokens) for version in np.unique(versions)}
    for t, (token, version) in enumerate(zip(tokens, versions.tolist(), strict=True)):
        logits, scores = forwards[version]
        expected = log_distribution(logits[t], sampling)
        assert abs(completion.logprobs[t] - expected[token]) < 1e-4, (t, version)
        if sampling.temperature == 0:
            assert token == logits[t].argmax()
        if scores is not None:
            assert completion.router_trace is not None
            ids = completion.router_trace.expert_ids[t]
            for layer, row in enumerate(scores[t]):
                assert set(ids[layer]) == set(np.argsort(-row)[:TOP_K]), (t, layer, version)
            recorded = completion.router_trace.scores[t].astype(np.float64)
            np.testing.assert_allclose(recorded, np.take_along_axis(scores[t], ids.astype(int), -1), rtol=1e-3)
    trace = completion.router_trace
    if trace is not None:
        layout: RouterLayout = trace.layout
        assert trace.expert_ids.shape == trace.scores.shape == (len(tokens), len(layout.layer_ids), layout.top_k)
        assert trace.expert_ids.dtype == layout.id_dtype
        assert trace.scores.dtype == np.float16


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result
