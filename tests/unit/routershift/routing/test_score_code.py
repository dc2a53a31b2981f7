"""Log-scores in one byte: what the code costs in accuracy, of a score and of gamma."""

import numpy as np
import pytest
from numpy.typing import NDArray

from routershift.routing import score_code
from routershift.trajectory import MISSING_LOG_SCORE

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


@pytest.mark.parametrize(("layers", "experts", "top_k"), [(3, 8, 2), (48, 128, 8)])
def test_the_error_of_gamma_is_bounded(layers: int, experts: int, top_k: int) -> None:
    """gamma = exp(-mean |new - old|) over layers and experts (arXiv 2510.23027), from codes and from float16."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (500, layers, experts))
    probabilities = np.log(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))
    old = np.sort(probabilities, axis=-1)[..., -top_k:].astype(np.float16)
    new = old + rng.normal(0, 0.05, old.shape)

    def log_gamma(scores: NDArray[np.float16]) -> NDArray[np.float64]:
        result: NDArray[np.float64] = -np.abs(new - scores.astype(np.float64)).mean(axis=(1, 2))
        return result

    error = np.abs(log_gamma(score_code.decode(score_code.encode(old))) - log_gamma(old))
    assert (error <= bound(old).mean(axis=(1, 2))).all()
    assert error.max() < 0.02, "two percent of gamma at most, where experts score as they do in a trained router"
