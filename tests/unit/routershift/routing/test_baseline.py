"""The baseline of the router shift: the median at lag zero, over batches, and subtracted."""

from dataclasses import replace
from pathlib import Path

import torch

from routershift.routing.hooks import Routing
from routershift.routing.shift import BASELINE_RATE, Baseline, Routes
from tests.support.rollouts import forward, load, packed, perturbed, random_groups
from tests.support.routing import SCALE, meter_of


def shifted(shifts: list[list[float]], missing: list[bool], lag_zero: list[bool]) -> tuple[Routes, list[torch.Tensor]]:
    """Routes of R tokens, and logits of L layers that are off the recorded scores by `shifts` [R][L]."""
    rows = len(shifts)
    logits = torch.randn(rows, 8, generator=torch.Generator().manual_seed(0))
    recorded = logits.log_softmax(-1)[:, None, :2] - torch.tensor(shifts)[..., None]
    ids = torch.tensor([0, 1], dtype=torch.uint8).expand(rows, len(shifts[0]), 2)
    routes = Routes(torch.arange(rows), ids, recorded, torch.tensor(missing), torch.tensor(lag_zero))
    return routes, [logits] * len(shifts[0])


def test_the_baseline_is_the_median_at_lag_zero_and_is_subtracted() -> None:
    """Tokens 0 to 2 count: token 3 is of an older version, tokens 4 and 5 have no route."""
    shifts = [[0.1, 0.0], [0.2, 0.3], [0.6, 0.5], [0.9, 0.05], [5.0, 5.0], [5.0, 5.0]]
    routes, logits = shifted(shifts, [False] * 4 + [True] * 2, [True, True, True, False, True, True])
    meter = meter_of(routes, torch.tensor([torch.nan, torch.nan]))
    for layer, values in enumerate(logits):
        meter.add(layer, values)
    torch.testing.assert_close(meter.medians, torch.tensor([0.2, 0.3]))
    assert int(meter.lag_zero_tokens) == 3
    unknown = meter.result()
    assert torch.equal(unknown.log_gamma, unknown.measured)

    baseline = Baseline(2)
    baseline.add(meter.medians, meter.lag_zero_tokens)
    baseline.close_batch()
    corrected = meter_of(routes, baseline.medians)
    for layer, values in enumerate(logits):
        corrected.add(layer, values)
    result = corrected.result()
    floored = [[0.0, 0.0], [0.0, 0.0], [0.4, 0.2], [0.7, 0.0], [0.0, 0.0], [0.0, 0.0]]
    torch.testing.assert_close(result.log_gamma, -torch.tensor(floored).mean(1), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(result.measured, unknown.measured)
    torch.testing.assert_close(result.layers, unknown.layers)


def test_the_baseline_runs_over_batches() -> None:
    baseline = Baseline(2)
    assert baseline.medians.isnan().all()
    baseline.add(torch.tensor([0.1, 0.2]), torch.tensor(30.0))
    baseline.add(torch.tensor([0.5, 0.6]), torch.tensor(10.0))
    baseline.add(torch.tensor([torch.nan, torch.nan]), torch.tensor(0.0))
    assert baseline.medians.isnan().all()  # a batch sees what was known before it
    baseline.close_batch()
    torch.testing.assert_close(baseline.medians, torch.tensor([0.2, 0.3]))

    restored = Baseline(2)
    restored.medians = baseline.medians
    for running in (baseline, restored):
        running.add(torch.tensor([0.2, 0.4]), torch.tensor(5.0))
        running.close_batch(lambda sums: sums + torch.tensor([2.2, 0.2, 1.0]) * 5)  # another rank saw 2.2 and 0.2
        torch.testing.assert_close(running.medians, torch.tensor([0.2 + BASELINE_RATE, 0.3]))
        running.add(torch.tensor([torch.nan, torch.nan]), torch.tensor(0.0))
        running.close_batch()  # no token of lag zero: nothing is learnt
        torch.testing.assert_close(running.medians, torch.tensor([0.2 + BASELINE_RATE, 0.3]))


def test_a_routing_with_a_baseline_learns_it_from_tokens_of_lag_zero(folder: Path) -> None:
    model = load(folder)
    batch = packed(random_groups(model, groups=4, samples=4))
    perturbed(model, SCALE)  # stands for an engine that disagrees
    assert batch.routes is not None
    routing = Routing(model, mismatch_baseline="subtract")
    before: torch.Tensor | None = None
    for lag_zero, is_known in ((False, False), (True, True)):
        routes = replace(batch.routes, lag_zero=torch.full_like(batch.routes.missing, lag_zero))
        with routing.observing(routes) as observation:
            forward(model, batch)
        before = getattr(observation.result(), "log_gamma", None)
        routing.baseline.close_batch()
        assert (not routing.baseline.medians.isnan().any()) == is_known
    with routing.observing(batch.routes) as observation:
        forward(model, batch)
    after = observation.result()
    assert after is not None
    assert before is not None
    torch.testing.assert_close(after.measured, before)
    assert after.log_gamma.mean() > before.mean() / 2
