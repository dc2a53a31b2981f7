"""`rspo_loss` against the formula of the paper, the learner's own loss, and arguments that do not fit."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from routershift import rspo_loss
from routershift.algorithms.aggregation import Totals
from routershift.errors import InvalidInputError
from routershift.routing.shift import Shift
from services.learner.data.collate import Batch
from services.learner.loss import Forward, Loss
from services.learner.settings import LearnerSettings

B, T = 5, 7


def arguments(seed: int = 0) -> dict[str, Any]:
    torch.manual_seed(seed)
    logprobs = (-torch.rand(B, T) * 3).requires_grad_()
    lengths = torch.tensor([7, 1, 4, 6, 2])
    return {
        "logprobs": logprobs,
        "old_logprobs": logprobs.detach() + torch.randn(B, T) * 0.5,
        "advantages": torch.randn(B),
        "mask": torch.arange(T) < lengths[:, None],
        "gamma": 0.8 + 0.2 * torch.rand(B, T),
    }


def by_hand(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor, gamma: Tensor) -> float:
    """Equation 11 of arXiv 2510.23027 v2, one token at a time."""
    total = 0.0
    for b in range(B):
        sign, exponent = math.copysign(1, advantages[b]), 0.0
        for t in range(T):
            if mask[b, t]:
                log_w = (logprobs[b, t] - old_logprobs[b, t]).item() + math.log(gamma[b, t])
                exponent += sign * min(sign * log_w, sign * max(-0.4, min(0.4, log_w)))
        total += math.exp(exponent / int(mask[b].sum())) * float(advantages[b])
    return -total / B


def test_it_is_the_formula_of_the_paper() -> None:
    for seed in range(5):
        given = arguments(seed)
        assert rspo_loss(**given).item() == pytest.approx(by_hand(**given), rel=1e-5)


def test_it_is_what_the_learner_computes() -> None:
    given = arguments()
    mask, gamma = given["mask"], given["gamma"]
    routes = int(mask.sum())
    nothing = torch.zeros(routes, dtype=torch.int64)
    batch = Batch(
        input_ids=nothing[None],
        position_ids=nothing[None],
        rows=nothing,
        targets=nothing,
        mask=mask,
        behaviour_logprobs=given["old_logprobs"],
        versions=nothing,
        advantages=given["advantages"],
        filler=torch.tensor(False),
        kept=torch.full((B,), -1),
        routes=None,
    )
    log_gamma = gamma[mask].log()
    shift = Shift(log_gamma, log_gamma, torch.zeros(1), traced=None)
    forward = Forward(given["logprobs"], torch.zeros(B, T), None, None, shift)
    learner = Loss(LearnerSettings(algorithm="rspo"))(batch, forward, Totals(B, routes, T)).loss
    (theirs,) = torch.autograd.grad(learner, given["logprobs"])
    ours = rspo_loss(**given)
    (gradient,) = torch.autograd.grad(ours, given["logprobs"])
    torch.testing.assert_close(ours, learner)
    torch.testing.assert_close(gradient, theirs)


def test_no_gradient_flows_but_through_logprobs() -> None:
    given = arguments()
    for tensor in (given["old_logprobs"], given["advantages"], given["gamma"]):
        tensor.requires_grad_()
    torch.autograd.backward(rspo_loss(**given))
    assert given["logprobs"].grad is not None
    assert given["gamma"].grad is None
    assert given["old_logprobs"].grad is None


def test_padding_and_responses_without_tokens_add_nothing() -> None:
    given = arguments()
    plain = rspo_loss(**given)
    mask = given["mask"]
    hostile: dict[str, Any] = {
        name: torch.where(mask, given[name], torch.nan) for name in ("logprobs", "old_logprobs", "gamma")
    }
    torch.testing.assert_close(rspo_loss(**given | hostile), plain)
    torch.testing.assert_close(rspo_loss(**given | {"mask": mask.long()}), plain)
    longer: dict[str, Any] = {name: torch.cat([tensor, tensor[:1]]) for name, tensor in given.items()}
    longer["mask"] = torch.cat([mask, torch.zeros_like(mask[:1])])
    torch.testing.assert_close(rspo_loss(**longer) * (B + 1), plain * B)
    none = rspo_loss(**given | {"mask": torch.zeros_like(mask)})
    torch.autograd.backward(none)
    assert none.item() == 0


def test_lower_precision_is_computed_in_float32() -> None:
    given = arguments()
    half: dict[str, Any] = given | {name: given[name].bfloat16() for name in ("logprobs", "old_logprobs", "gamma")}
    assert rspo_loss(**half).dtype is torch.float32
    rounded: dict[str, Any] = {
        name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in half.items()
    }
    torch.testing.assert_close(rspo_loss(**half), rspo_loss(**rounded))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logprobs": torch.zeros(T)}, r"logprobs has shape \[7\]; expected \[B, T\]"),
        ({"logprobs": torch.zeros(B, T, dtype=torch.int64)}, "logprobs is of type torch.int64; expected a float type"),
        ({"logprobs": [[0.0]]}, "logprobs is of type list; expected a tensor"),
        ({"old_logprobs": torch.zeros(B, T + 1)}, r"old_logprobs has shape \[5, 8\]; expected \[B, T\] = \[5, 7\]"),
        ({"advantages": torch.zeros(B, 1)}, r"advantages has shape \[5, 1\]; expected \[B\] = \[5\]"),
        ({"mask": torch.ones(B)}, r"mask has shape \[5\]; expected \[B, T\] = \[5, 7\]"),
        ({"mask": [[1]]}, "mask is of type list; expected a tensor"),
        ({"gamma": torch.zeros(B)}, r"gamma has shape \[5\]; expected \[B, T\] = \[5, 7\]"),
        ({"gamma": torch.zeros(B, T)}, r"gamma holds values outside \(0, 1\]"),
        ({"gamma": torch.full((B, T), -0.1)}, r"gamma holds values outside \(0, 1\]"),
        ({"gamma": torch.full((B, T), torch.nan)}, r"gamma holds values outside \(0, 1\]"),
        ({"old_logprobs": torch.full((B, T), -torch.inf)}, "old_logprobs is not finite"),
        ({"logprobs": torch.full((B, T), torch.nan)}, "logprobs is not finite"),
        ({"advantages": torch.full((B,), torch.nan)}, "advantages is not finite"),
        ({"clip_low": 0.0}, "clip_low is 0.0; expected a number above 0"),
        ({"clip_high": math.nan}, "clip_high is nan; expected a number above 0"),
        ({"apply": "never"}, "apply is 'never'; expected before_clip or after_clip"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {**arguments(), **changes}
    with pytest.raises(InvalidInputError, match=message):
        rspo_loss(**given)
