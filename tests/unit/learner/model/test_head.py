"""The head in chunks, against log-probs of all logits at once, written out."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GraniteConfig, GraniteForCausalLM, PhiConfig, PhiForCausalLM

from services.learner.distributed.ranks import Ranks
from services.learner.model.attention import Attention
from services.learner.model.head import Head, Wanted, chunked_logprobs
from tests.bench.memory import peak_bytes
from tests.support.models import MOE_KINDS, VOCABULARY, save_model
from tests.support.rollouts import load
from tests.support.settings import learner_settings

TOKENS, ROWS, TEMPERATURE = 9, (1, 2, 3, 5, 7), 0.7
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 2, "initializer_range": 0.3, "pad_token_id": 0,
}  # fmt: skip


@pytest.fixture
def ranks() -> Ranks:
    settings = learner_settings()
    return Ranks.open(settings.device, settings.parallel.timeout)


def wanted(entropy_gradient: bool = False) -> Wanted:
    generator = torch.Generator().manual_seed(1)
    targets = torch.randint(VOCABULARY, (len(ROWS),), generator=generator)
    return Wanted(torch.tensor(ROWS), targets, TEMPERATURE, entropy_gradient)


def inputs() -> tuple[Tensor, Tensor]:
    ids = torch.randint(2, VOCABULARY, (1, TOKENS), generator=torch.Generator().manual_seed(2))
    return ids, torch.arange(TOKENS)[None]


def plain(model: Any, asked: Wanted) -> tuple[Tensor, Tensor]:
    ids, positions = inputs()
    logits = model(input_ids=ids, position_ids=positions, use_cache=False).logits[0, asked.rows] / asked.temperature
    probabilities = logits.double().softmax(dim=-1)
    chosen = probabilities[range(len(ROWS)), asked.targets].log()
    return chosen.float(), -(probabilities * probabilities.log()).sum(dim=-1).float()


def gradients(model: nn.Module, found: tuple[Tensor, Tensor], of_entropy: float) -> dict[str, Tensor]:
    model.zero_grad()
    weights = torch.linspace(-1, 2, len(ROWS))
    loss = (weights * found[0]).sum()
    if of_entropy:
        loss = loss + of_entropy * (weights.flip(0) * found[1]).sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def require_equal(model: Any, ranks: Ranks, chunk_tokens: int, of_entropy: float = 0.0) -> None:
    asked = wanted(of_entropy > 0)
    expected = plain(model, asked)
    expected_gradients = gradients(model, expected, of_entropy)
    head = Head(model, Attention(model.config._attn_implementation), ranks, chunk_tokens * VOCABULARY * 4)
    found = head.logprobs(*inputs(), asked)
    assert found[1].requires_grad == (of_entropy > 0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found_gradients = gradients(model, found, of_entropy)
    assert found_gradients.keys() == expected_gradients.keys()
    for name, expected_gradient in expected_gradients.items():
        scale = float(expected_gradient.abs().max())
        torch.testing.assert_close(found_gradients[name], expected_gradient, rtol=1e-4, atol=1e-5 * max(1.0, scale))
    torch.testing.assert_close(plain(model, asked), expected, rtol=0, atol=0, msg="nobody asks, so logits come out")


@pytest.mark.parametrize("kind", [*MOE_KINDS, "qwen3_dense"])
def test_log_probs_entropies_and_gradients_are_those_of_all_logits(tmp_path: Path, ranks: Ranks, kind: str) -> None:
    require_equal(load(save_model(tmp_path, kind)), ranks, chunk_tokens=2, of_entropy=0.5)


@pytest.mark.parametrize("chunk_tokens", [0, 1, 4, 5, 100])
@pytest.mark.parametrize("of_entropy", [0.0, 0.5])
def test_chunks_of_any_size(tmp_path: Path, ranks: Ranks, chunk_tokens: int, of_entropy: float) -> None:
    """0: one token at a time all the same. From 5 on there is one chunk, whose logits are kept."""
    require_equal(load(save_model(tmp_path)), ranks, chunk_tokens, of_entropy)


def granite() -> Any:
    return GraniteForCausalLM(GraniteConfig(**SIZES, logits_scaling=8.0))


def phi() -> Any:
    model = PhiForCausalLM(PhiConfig(**SIZES))
    nn.init.normal_(model.lm_head.bias)
    return model


def gemma() -> Any:
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, head_dim=16, final_logit_softcapping=2.0))


@pytest.mark.parametrize(
    ("make", "why_whole"),
    [
        pytest.param(granite, "", id="a factor"),
        pytest.param(phi, "", id="a bias"),
        pytest.param(gemma, "model type gemma2 changes its logits by more than a factor", id="a soft cap"),
    ],
)
def test_what_a_model_does_with_its_logits_is_kept(
    ranks: Ranks, caplog: pytest.LogCaptureFixture, make: Callable[[], Any], why_whole: str
) -> None:
    torch.manual_seed(0)
    with caplog.at_level(logging.WARNING):
        require_equal(make().eval(), ranks, chunk_tokens=2, of_entropy=0.5)
    assert why_whole in caplog.text
    assert bool(caplog.text) == bool(why_whole)


def test_sums_over_chunks_are_as_exact_in_bfloat16_as_one_product() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(256, 16), torch.randn(64, 16)
    targets = torch.randint(64, (256,))

    def to_weight(dtype: torch.dtype, chunk_tokens: int) -> Tensor:
        leaf = weight.to(torch.bfloat16).to(dtype).requires_grad_()
        logprobs, _ = chunked_logprobs(
            hidden.to(torch.bfloat16).to(dtype), leaf, None, targets, 1.0, chunk_tokens, False
        )
        logprobs.sum().backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        assert leaf.grad is not None
        return leaf.grad.float()

    exact = to_weight(torch.float32, 256)
    whole, chunked = ((to_weight(torch.bfloat16, size) - exact).abs().max() for size in (256, 4))
    assert chunked <= 1.5 * whole


def test_memory_is_that_of_a_chunk() -> None:
    """Beside the gradient of the weight, which is as large as that, however many tokens there are."""
    torch.manual_seed(0)
    vocabulary, tokens, chunk = 20_000, 1_024, 32
    hidden, weight = torch.randn(tokens, 4, requires_grad=True), torch.randn(vocabulary, 4, requires_grad=True)
    targets = torch.randint(vocabulary, (tokens,))

    def step() -> None:
        logprobs, entropy = chunked_logprobs(hidden, weight, None, targets, 1.0, chunk, True)
        (logprobs + entropy).sum().backward()  # type: ignore[no-untyped-call]  # as above
        hidden.grad = weight.grad = None

    assert peak_bytes(step, torch.device("cpu"), 0) < 3.5 * 4 * chunk * vocabulary + 3 * weight.nbytes
