"""Samples of a run as the learner keeps them, made of nothing."""

from dataclasses import replace
from typing import Any

import numpy as np

from shared.tracking.sample import TRAINED, Sample, Tokens


def tokens(count: int = 5, layers: int = 3, seed: int = 0) -> Tokens:
    """Those of a response that was trained on; their bytes hardly compress."""
    rng = np.random.default_rng(seed)

    def single(*shape: int) -> Any:
        return rng.random(shape, dtype=np.float32)

    return Tokens(
        ids=rng.integers(0, 1000, count).astype(np.int32),
        pieces=tuple(f"piece{i} " for i in range(count)),
        versions=np.sort(rng.integers(0, 3, count)),
        logprobs=-single(count),
        trained_logprobs=-single(count),
        entropy=single(count),
        clipped=rng.random(count) < 0.5,
        log_gamma=-single(count),
        drift=single(count, layers),
    )


def sample(step: int = 1, trajectory: str = "00000007/0/0", **changes: Any) -> Sample:
    made = Sample(
        step=step,
        trajectory=trajectory,
        prompt="What is 6 times 7?",
        problem="row-7",
        response="It is 42.",
        outcome=TRAINED,
        reward=1.0,
        verifier="math",
        tokens=tokens(),
        parts={"correct": 1.0, "format": 0.5},
        verifier_version="2",
        advantage=0.75,
        finish_reason="stop",
        layers=(0, 1, 2),
    )
    return replace(made, **changes)


def dropped(step: int = 1, trajectory: str = "00000008/0/0", reason: str = "zero_variance", **changes: Any) -> Sample:
    """One that was never trained on: nothing is known of its tokens but what generation recorded."""
    known = tokens()
    only = Tokens(known.ids, known.pieces, known.versions, known.logprobs)
    return sample(step, trajectory, **{"outcome": reason, "advantage": None, "tokens": only, **changes})
