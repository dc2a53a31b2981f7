"""`RouterTap` and `router_shift` on every family, against full logits and the learner's own measurement."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from routershift import RouterTap, router_shift
from routershift.errors import InvalidInputError, PreconditionError
from routershift.routing.choices import LayerAggregation
from routershift.routing.hooks import Routing
from routershift.routing.routers import log_scores
from routershift.routing.shift import Routes, clip_log_gamma
from tests.support.models import EXPERTS, MOE_KINDS, TOP_K, VOCABULARY, save_model
from tests.support.rollouts import load, perturbed, routing

B, W, P = 3, 9, 4
RESPONSE = slice(P - 1, -1)
T = W - P


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(2, VOCABULARY, (B, W), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model(folder: Path) -> PreTrainedModel:
    return load(folder)


@pytest.mark.parametrize("kind", MOE_KINDS)
def test_it_records_what_every_family_chose(tmp_path: Path, tokens: Tensor, kind: str) -> None:
    model = load(save_model(tmp_path, kind))
    tap = RouterTap(model)
    layers = len(tap.layout.layer_ids)
    with torch.no_grad(), routing(model) as passes, tap.record() as whole:
        logits = model(tokens, use_cache=False).logits
    with torch.no_grad(), tap.record(positions=RESPONSE) as part:
        torch.testing.assert_close(model(tokens, use_cache=False).logits, logits)
    assert whole.expert_ids.shape == whole.log_scores.shape == (B, W, layers, TOP_K)
    chosen = passes[0].expert_ids.reshape(B, W, layers, TOP_K)
    assert torch.equal(whole.expert_ids.long().sort().values, chosen.long().sort().values)
    full = passes[0].logits.reshape(B, W, layers, -1)
    expected = log_scores(tap.layout.score_function, full, whole.expert_ids.long())
    torch.testing.assert_close(whole.log_scores, expected.float())
    assert torch.equal(part.expert_ids, whole.expert_ids[:, RESPONSE])
    torch.testing.assert_close(part.log_scores, whole.log_scores[:, RESPONSE])


@pytest.mark.parametrize("aggregation", ["mean", "product"])
@pytest.mark.parametrize("kind", MOE_KINDS)
def test_gamma_is_what_the_learner_measures(
    tmp_path: Path, tokens: Tensor, kind: str, aggregation: LayerAggregation
) -> None:
    model = load(save_model(tmp_path, kind))
    tap = RouterTap(model)
    with torch.no_grad(), tap.record(positions=RESPONSE) as old:
        model(tokens, use_cache=False)
    moved = perturbed(model, 0.02)
    with torch.no_grad(), tap.record(old.expert_ids, RESPONSE) as new:
        moved(tokens, use_cache=False)
    gamma = router_shift(new.log_scores, old.log_scores, gamma_min=0.5, layer_aggregation=aggregation)
    rows = (torch.arange(B)[:, None] * W + torch.arange(P - 1, W - 1)).flatten()
    known = torch.zeros(rows.shape, dtype=torch.bool)
    routes = Routes(rows, old.expert_ids.flatten(0, 1), old.log_scores.flatten(0, 1), known, known)
    with torch.no_grad(), Routing(moved, aggregation).observing(routes) as observation:
        moved(tokens, use_cache=False)
    shift = observation.result()
    assert shift is not None
    expected = clip_log_gamma(shift.log_gamma, 0.5).exp().view(B, T)
    torch.testing.assert_close(gamma, expected, rtol=1e-4, atol=1e-5)
    assert gamma.min() < 0.99


def test_the_same_weights_have_gamma_one_and_no_gradient(model: PreTrainedModel, tokens: Tensor) -> None:
    tap = RouterTap(model)
    with torch.no_grad(), tap.record() as old:
        model(tokens)
    with tap.record(old.expert_ids) as new:
        model(tokens)
    gamma = router_shift(new.log_scores, old.log_scores)
    assert not gamma.requires_grad
    torch.testing.assert_close(gamma, torch.ones(B, W))


def test_missing_routes_take_one_whatever_they_hold() -> None:
    new, old = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), -0.1)
    old[0, 1] = torch.nan
    missing = torch.tensor([[False, True, False]])
    gamma = router_shift(new, old, missing=missing)
    torch.testing.assert_close(gamma, torch.tensor([[0.904837, 1.0, 0.904837]]))
    with pytest.raises(InvalidInputError, match="not finite; mark the tokens"):
        router_shift(new, old)


def test_the_bound_is_gamma_min() -> None:
    far = torch.full((1, 1, 2, 2), -1000.0)
    for aggregation in ("mean", "product"):
        gamma = router_shift(far, torch.zeros_like(far), gamma_min=0.7, layer_aggregation=aggregation)
        assert gamma.item() == pytest.approx(0.7)


def test_activation_checkpointing_counts_a_pass_once(model: PreTrainedModel, tokens: Tensor) -> None:
    tap = RouterTap(model)
    with torch.no_grad(), tap.record() as plain:
        model(tokens, use_cache=False)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    with tap.record() as routes:
        model(tokens, use_cache=False).logits.sum().backward()
    torch.testing.assert_close(routes.log_scores, plain.log_scores)


def test_wrappers_are_looked_into(model: PreTrainedModel, tokens: Tensor) -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, *arguments: Any) -> Any:
            return self.module(*arguments)

    wrapped = Wrapper(model)
    with torch.no_grad(), RouterTap(wrapped).record() as routes:
        wrapped(tokens)
    assert routes.log_scores.shape[:2] == (B, W)


def test_lora_of_peft_is_looked_into(model: PreTrainedModel, tokens: Tensor) -> None:
    from peft import LoraConfig, get_peft_model

    adapted = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
    with torch.no_grad(), RouterTap(adapted).record() as routes:
        adapted(tokens)
    assert routes.log_scores.shape[:2] == (B, W)


def test_what_was_closed_or_is_not_inside_records_nothing(model: PreTrainedModel, tokens: Tensor) -> None:
    tap = RouterTap(model)
    with torch.no_grad():
        with tap.record() as routes:
            model(tokens)
        first = routes.log_scores
        model(tokens.flip(1))
        assert torch.equal(routes.log_scores, first)
        with tap.record() as empty:
            pass
        with pytest.raises(PreconditionError, match="saw no forward pass"):
            _ = empty.log_scores
        with tap.record(), pytest.raises(PreconditionError, match="watched already"), tap.record():
            pass
        tap.close()
        with tap.record() as closed:
            model(tokens)
        with pytest.raises(PreconditionError, match="saw no forward pass"):
            _ = closed.expert_ids


def test_models_without_routers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="router shift and routing replay need a model with routers"):
        RouterTap(load(save_model(tmp_path, "qwen3_dense")))
    with pytest.raises(InvalidInputError, match="model is of type Linear; expected a model of transformers"):
        RouterTap(nn.Linear(1, 1))


def test_expert_ids_that_do_not_fit_are_named(model: PreTrainedModel, tokens: Tensor) -> None:
    tap = RouterTap(model)
    layers = len(tap.layout.layer_ids)
    fits = torch.zeros(B, W, layers, TOP_K, dtype=torch.int64)
    for expert_ids, message in (
        (fits.float(), "expert_ids is of type torch.float32; expected an integer type"),
        (fits[0], r"expert_ids has shape .* expected \[B, T, L, K\] with L = 3 routed layers and K = 2"),
        (fits[..., :1], "and K = 2 experts activated per token"),
        (fits - 1, f"expert_ids holds -1 to -1; the model has {EXPERTS} experts"),
        (fits + EXPERTS, f"expert_ids holds {EXPERTS} to {EXPERTS}; the model has {EXPERTS} experts"),
    ):
        with pytest.raises(InvalidInputError, match=message), tap.record(expert_ids):
            pass
    with pytest.raises(InvalidInputError, match=r"\[3, 8\]; the forward pass has \[3, 9\]"), tap.record(fits[:, 1:]):
        model(tokens)
    with torch.no_grad(), tap.record() as routes:  # what failed has left nothing behind
        model(tokens)
    assert routes.log_scores.shape == fits.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"log_scores": torch.zeros(1, 2, 3)}, r"log_scores has shape \[1, 2, 3\]; expected \[B, T, L, K\]"),
        ({"log_scores": torch.zeros(1, 2, 0, 4)}, r"log_scores has shape \[1, 2, 0, 4\]"),
        ({"log_scores": torch.zeros(1, 2, 3, 4).long()}, "log_scores is of type torch.int64; expected a float type"),
        (
            {"old_log_scores": torch.zeros(1, 2, 3, 5)},
            r"old_log_scores has shape \[1, 2, 3, 5\]; expected \[B, T, L, K\]",
        ),
        ({"missing": torch.zeros(2)}, r"missing has shape \[2\]; expected \[B, T\] = \[1, 2\]"),
        ({"gamma_min": 0.0}, "gamma_min is 0.0; expected a number above 0 and at most 1"),
        ({"gamma_min": 1.5}, "gamma_min is 1.5"),
        ({"layer_aggregation": "sum"}, "layer_aggregation is 'sum'; expected mean or product"),
        ({"log_scores": torch.full((1, 2, 3, 4), torch.nan)}, "not finite"),
    ],
)
def test_scores_that_do_not_fit_are_named(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"log_scores": torch.zeros(1, 2, 3, 4), "old_log_scores": torch.zeros(1, 2, 3, 4)} | changes
    with pytest.raises(InvalidInputError, match=message):
        router_shift(**given)
