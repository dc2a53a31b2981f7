"""Log-scores in one byte: what the code costs in accuracy, of a score and of gamma."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from routershift.routing import score_code
from routershift.routing.layout import ScoreFunction
from routershift.routing.score_code import MISSING_LOG_SCORE
from routershift.routing.shift import Routes, ShiftMeter

# Every log-score that float16 has, down to where the code ends.
SCORES = -np.arange(0, 0x4BE0 + 1, dtype=np.uint16).view(np.float16)


def bound(log_scores: NDArray[np.float16]) -> NDArray[np.float64]:
    """What the module promises, and the rounding of the code's value to float16."""
    size = -log_scores.astype(np.float64)
    return (np.sqrt(size) + 1 / 256) / 64 + size * 2.0**-10


def test_every_score_comes_back_within_the_bound() -> None:
    assert float(SCORES[-1]) == -15.75
    error = np.abs(score_code.decode(score_code.encode(SCORES)).astype(np.float64) - SCORES.astype(np.float64))
    assert (error <= bound(SCORES)).all()
    assert error.max() > 0.5 * bound(SCORES).max(), "the bound says something"


def test_scores_below_the_last_code_become_it_and_certainty_stays() -> None:
    codes = score_code.encode(np.array([0.0, -0.0, -15.75, -40.0, -65504.0], np.float16))
    assert codes.tolist() == [0, 0, 254, 254, 254]
    assert score_code.decode(codes).tolist() == [0.0, 0.0, -15.75, -15.75, -15.75]


def test_a_missing_route_keeps_a_code_of_its_own() -> None:
    codes = score_code.encode(np.array([MISSING_LOG_SCORE, 0.0], np.float16))
    assert score_code.decode(codes).tolist() == [MISSING_LOG_SCORE, 0.0]


def test_a_score_that_is_coded_again_stays_as_it_is() -> None:
    codes = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(score_code.encode(score_code.decode(codes)), codes)


def shift_of(old: NDArray[np.float16], now: NDArray[np.float32], coded: bool) -> NDArray[np.float32]:
    """-log gamma [R] of R tokens whose K = E experts had the log-scores `old` [R, L, K] and have `now`.

    The scores are those of sigmoids, as these take any values beside each other.
    """
    rows, layers, experts = old.shape
    routes = Routes(
        rows=torch.arange(rows),
        expert_ids=torch.arange(experts, dtype=torch.uint8).expand(rows, layers, experts),
        log_scores=torch.from_numpy(score_code.encode(old) if coded else old),
        missing=torch.zeros(rows, dtype=torch.bool),
        lag_zero=torch.zeros(rows, dtype=torch.bool),
    )
    meter = ShiftMeter(routes, layers, ScoreFunction.SIGMOID, "mean")
    for layer in range(layers):
        scores = torch.from_numpy(now[:, layer]).double()
        meter.add(layer, (scores - torch.log(-torch.expm1(scores))).float())
    shift: NDArray[np.float32] = -meter.result().log_gamma.numpy()
    return shift


def drawn(tokens: int, layers: int, top_k: int, moved: float) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Scores between 0.02 and 0.9 [tokens, layers, top_k], and where they are after moving by about `moved`."""
    rng = np.random.default_rng(0)
    old = np.log(rng.uniform(0.02, 0.9, (tokens, layers, top_k))).astype(np.float16)
    now = old.astype(np.float32) + rng.normal(0, moved, old.shape).astype(np.float32)
    return old, np.minimum(now, np.float32(-0.01))


@pytest.mark.parametrize(("layers", "top_k"), [(1, 1), (3, 2), (48, 8)])
@pytest.mark.parametrize("moved", [0.001, 0.02, 0.3])
def test_the_error_of_log_gamma_is_bounded_and_has_no_sign(layers: int, top_k: int, moved: float) -> None:
    """It is within the mean of both bounds on each token, within Hoeffding's of nearly all, and 0 over many."""
    old, now = drawn(20_000 // (layers * top_k), layers, top_k, moved)
    error = shift_of(old, now, coded=True) - shift_of(old, now, coded=False)
    width = 2 * bound(old)
    assert (np.abs(error) <= (bound(old) + bound(now.astype(np.float16))).mean(axis=(1, 2)) + 1e-4).all()
    beyond = width.max() * np.sqrt(np.log(2 / 0.001) / (2 * layers * top_k))
    assert (np.abs(error) > beyond).mean() <= 0.001
    assert abs(error.mean()) < 4 * width.mean() / 2 / np.sqrt(old.size)


def test_a_router_that_has_not_moved_has_gamma_one_exactly() -> None:
    old, _ = drawn(500, 3, 2, 0)
    assert shift_of(old, old.astype(np.float32), coded=True).max() == 0.0
    with_live_score = np.abs(score_code.decode(score_code.encode(old)).astype(np.float64) - old).mean()
    assert with_live_score > 0.005, "what comparing a live score with the value of a code would add"


def test_no_router_however_sharp_takes_log_gamma_further_than_is_said() -> None:
    """The docstring's 0.124, on scores anywhere; below -15.75 they stand still."""
    rng = np.random.default_rng(1)
    old = -rng.uniform(0, 15.75, (4000, 1, 1)).astype(np.float16)
    now = -rng.uniform(0, 15.75, (4000, 1, 1)).astype(np.float32)
    error = np.abs(shift_of(old, now, coded=True) - shift_of(old, now, coded=False))
    assert 0.06 < error.max() <= 0.124
    beyond = np.array([[[-16.0]]], np.float16)
    assert shift_of(beyond, np.array([[[-20.0]]], np.float32), coded=True).item() == 0.0
