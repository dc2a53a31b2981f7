"""Load and overlap of experts, against counting by hand."""

from pathlib import Path

import pytest
import torch

from routershift.routing.expert_load import UseMeter, balance
from routershift.routing.hooks import Routing
from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.routing.shift import Routes
from tests.support.models import save_model
from tests.support.rollouts import forward, load, packed, perturbed, random_groups, routing

LAYOUT = RouterLayout(layer_ids=(0, 1), num_experts=4, top_k=2, score_function=ScoreFunction.SOFTMAX)


def test_response_tokens_are_counted_and_tokens_without_a_route_overlap_nothing() -> None:
    recorded = torch.tensor([[[0, 1], [0, 1]], [[2, 3], [2, 3]], [[0, 1], [0, 1]]], dtype=torch.uint8)
    routes = Routes(
        rows=torch.tensor([1, 2, 3]),
        expert_ids=recorded,
        log_scores=torch.zeros(3, 2, 2),
        missing=torch.tensor([False, False, True]),
        lag_zero=torch.zeros(3, dtype=torch.bool),
    )
    meter = UseMeter(routes, LAYOUT)
    meter.add(0, torch.tensor([[3, 2], [1, 0], [2, 0], [0, 1]]))  # its first row is a prompt token
    meter.add(1, torch.tensor([[0, 1], [2, 3], [0, 1], [0, 1]]))
    use = meter.result()
    assert use.loads.tolist() == [[3, 2, 1, 0], [2, 2, 1, 1]]
    assert use.overlaps.tolist() == [1.5, 0.0]


def test_the_experts_of_a_forward_pass(tmp_path: Path) -> None:
    """Against the ids of every position, read by hooks of the test's own."""
    model = load(save_model(tmp_path))
    batch = packed(random_groups(model, groups=2, samples=2))
    assert batch.routes is not None
    perturbed(model, 0.02)
    with Routing(model).observing(batch.routes) as observation, routing(model) as passes:
        forward(model, batch)
    use = observation.use()
    assert use is not None
    chosen = passes[0].expert_ids[batch.rows]  # [R, L, K]
    for layer in range(chosen.shape[1]):
        counts = torch.bincount(chosen[:, layer].flatten(), minlength=use.loads.shape[1])
        assert use.loads[layer].tolist() == counts.tolist()
        same = [
            len(set(now) & set(then)) / len(then)
            for now, then in zip(chosen[:, layer].tolist(), batch.routes.expert_ids[:, layer].tolist(), strict=True)
        ]
        assert float(use.overlaps[layer]) == pytest.approx(sum(same))


def test_balance_of_even_and_of_one_sided_loads() -> None:
    busiest, entropy = balance(torch.tensor([[5.0, 5.0, 5.0, 5.0], [10.0, 10.0, 0.0, 0.0], [8.0, 0.0, 0.0, 0.0]]))
    assert busiest.tolist() == pytest.approx([1.0, 2.0, 4.0])
    assert entropy.tolist() == pytest.approx([1.0, 0.5, 0.0])
