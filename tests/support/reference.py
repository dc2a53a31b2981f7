"""What a completion must hold, from plain transformers and textbook definitions; no code of any engine."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from routershift.routing.layout import RouterLayout
from routershift.trajectory import Completion, RouterTrace, TopLogprobs, versions_of
from services.generation.engines.base import EngineSampling
from shared.models.loading import LOADING
from tests.support.models import TOP_K


class Reference:
    """One model, evaluated one uncached sequence at a time."""

    def __init__(self, folder: Path) -> None:
        with LOADING:
            self.model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
            ).eval()

    @torch.no_grad()
    def forward(self, prompt: list[int], tokens: list[int]) -> tuple[NDArray[np.float64], NDArray[np.float64] | None]:
        """At the positions that predict `tokens`: logits [T, vocabulary], and those of routers [T, L, E] if any."""
        routed = hasattr(self.model.config, "num_experts")
        options = {"output_router_logits": True} if routed else {}
        output = self.model(torch.tensor([[*prompt, *tokens[:-1]]]), **options)
        at = slice(len(prompt) - 1, None)
        logits = output.logits[0, at].double().numpy()
        if not routed:
            return logits, None
        return logits, torch.stack([layer.double() for layer in output.router_logits], dim=1)[at].numpy()


def log_distribution(logits: NDArray[np.float64], sampling: EngineSampling) -> NDArray[np.float64]:
    """[vocabulary]: what one row of logits is sampled from; the temperature-1 softmax for greedy."""
    if sampling.temperature == 0:
        return _log_softmax(logits)
    scaled = logits / sampling.temperature
    order = np.argsort(-scaled)
    order = order[np.exp(scaled[order] - scaled.max()) >= sampling.min_p]
    kept = order[: sampling.top_k or None]
    masses = np.exp(_log_softmax(scaled[kept]))
    nucleus = kept[: int(np.searchsorted(np.cumsum(masses), sampling.top_p)) + 1]
    result = np.full_like(logits, -np.inf)
    result[nucleus] = _log_softmax(scaled[nucleus])
    return result


def check(
    completion: Completion, prompt: list[int], sampling: EngineSampling, references: dict[int, Reference]
) -> None:
    """Asserts that each token's log-probs and routes are those of the version that it says it is from."""
    tokens = completion.token_ids.tolist()
    versions = versions_of(completion.versions)
    trace = completion.router_trace
    assert len(tokens) == len(completion.logprobs) == len(versions)
    forwards = {int(version): references[int(version)].forward(prompt, tokens) for version in np.unique(versions)}
    for t, (token, version) in enumerate(zip(tokens, versions.tolist(), strict=True)):
        logits, routed = forwards[version]
        expected = log_distribution(logits[t], sampling)
        assert abs(completion.logprobs[t] - expected[token]) < 1e-4, (t, version)
        if sampling.temperature == 0:
            assert token == logits[t].argmax()
        if completion.top_logprobs is not None:
            _check_top(completion.top_logprobs, t, expected, sampling.logprobs)
        if trace is not None:
            assert routed is not None
            _check_routes(trace, t, routed[t])
    if completion.top_logprobs is not None:
        assert len(completion.top_logprobs.token_ids) == len(completion.top_logprobs.logprobs) == len(tokens)
    if trace is not None:
        layout: RouterLayout = trace.layout
        assert trace.expert_ids.shape == (len(tokens), len(layout.layer_ids), layout.top_k)
        assert trace.expert_ids.dtype == layout.id_dtype
        if trace.log_scores is not None:
            assert trace.log_scores.shape == trace.expert_ids.shape
            assert trace.log_scores.dtype == np.float16
        if trace.logits is not None:
            assert trace.logits.shape == (*trace.expert_ids.shape[:2], layout.num_experts)
            assert trace.logits.dtype == np.float16


def _check_routes(trace: RouterTrace, t: int, logits: NDArray[np.float64]) -> None:
    """Token t of a trace, against the logits [L, E] of its routers."""
    ids = trace.expert_ids[t].astype(int)
    for layer, row in enumerate(logits):
        assert set(ids[layer]) == set(np.argsort(-row)[:TOP_K]), (t, layer)
    if trace.log_scores is not None:
        scores = np.take_along_axis(np.stack([_log_softmax(row) for row in logits]), ids, -1)
        np.testing.assert_allclose(trace.log_scores[t].astype(np.float64), scores, rtol=1e-3)
    if trace.logits is not None:
        np.testing.assert_allclose(trace.logits[t].astype(np.float64), logits, rtol=1e-3, atol=1e-4)


def _check_top(top: TopLogprobs, t: int, expected: NDArray[np.float64], count: int) -> None:
    """Token t, against the log-probs [vocabulary] of all tokens."""
    lowest = np.finfo(np.float32).min
    ids, logprobs = top.token_ids[t], top.logprobs[t]
    assert len(set(ids.tolist())) == len(ids) == len(logprobs) == count
    np.testing.assert_allclose(logprobs, np.maximum(-np.sort(-expected)[:count], lowest), atol=1e-4)
    np.testing.assert_allclose(logprobs, np.maximum(expected[ids], lowest), atol=1e-4)


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max()
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return result
