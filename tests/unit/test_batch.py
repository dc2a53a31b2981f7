"""Padding, alignment and micro-batches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from services.learner.batch import Sample, Weighted, collate, micro_batches
from shared.trajectory import Completion, FinishReason, VersionSpan
from tests.models import save_model
from tests.rollouts import load, random_groups


def sample(prompt: int, response: int, spans: tuple[VersionSpan, ...] | None = None) -> Sample:
    """Prompt tokens 100, 101, ...; response tokens 200, 201, ...; log-probs are -0.1, -0.2, ...."""
    completion = Completion(
        index=0,
        token_ids=np.arange(200, 200 + response, dtype=np.int32),
        logprobs=np.linspace(-0.1, -0.1 * response, response, dtype=np.float32),
        versions=spans or (VersionSpan(0, response),),
        finish_reason=FinishReason.STOP,
        router_trace=None,
    )
    return Sample(np.arange(100, 100 + prompt, dtype=np.int32), completion, 1.0)


def test_every_token_is_aligned_with_the_position_that_predicts_it() -> None:
    spans = (VersionSpan(3, 1), VersionSpan(5, 2))
    batch = collate(
        [Weighted(sample(2, 3, spans), 0.5), Weighted(sample(4, 1), -1.0)],
        with_routes=False,
        device=torch.device("cpu"),
    )
    assert batch.input_ids.tolist() == [[100, 101, 200, 201], [100, 101, 102, 103]]
    assert batch.mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.positions.tolist() == [[1, 2, 3], [3, 0, 0]]
    assert batch.targets[batch.mask].tolist() == [200, 201, 202, 200]
    assert batch.versions.tolist() == [[3, 5, 5], [0, -1, -1]]
    assert batch.advantages.tolist() == [0.5, -1.0]
    np.testing.assert_allclose(batch.behaviour_logprobs[batch.mask], [-0.1, -0.2, -0.3, -0.1])
    # The first response token is predicted by the last prompt token, each other one by the token before it.
    read = batch.input_ids.gather(1, batch.positions)[batch.mask]
    assert read.tolist() == [101, 200, 201, 103]


def test_logits_and_routes_are_read_where_the_behaviour_policy_recorded_them(tmp_path: Path) -> None:
    """The padded batch gives back, from the same weights, the log-probs and scores recorded one by one."""
    model = load(save_model(tmp_path))
    samples = [Weighted(s, 1.0) for group in random_groups(model, groups=3, samples=3) for s in group.samples]
    batch = collate(samples, with_routes=True, device=torch.device("cpu"))
    with torch.no_grad():
        output = model(batch.input_ids, output_router_logits=True)
    rows = torch.arange(len(samples))[:, None], batch.positions
    found = output.logits.log_softmax(-1)[rows].gather(2, batch.targets[..., None])[..., 0]
    torch.testing.assert_close(found[batch.mask], batch.behaviour_logprobs[batch.mask], rtol=1e-5, atol=1e-5)
    assert batch.routes is not None
    for layer, logits in enumerate(output.router_logits):
        scores = logits.log_softmax(-1)[batch.routes.rows].gather(1, batch.routes.expert_ids[:, layer].long())
        torch.testing.assert_close(scores, batch.routes.log_scores[:, layer].float(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("limit", [1, 20, 64, 10_000])
def test_micro_batches_keep_every_sample_within_the_limit(limit: int) -> None:
    rng = np.random.default_rng(0)
    samples = [Weighted(sample(int(rng.integers(1, 9)), int(rng.integers(1, 20))), float(i)) for i in range(50)]
    batches = micro_batches(samples, limit)
    assert sorted(w.advantage for batch in batches for w in batch) == [w.advantage for w in samples]
    for batch in batches:
        padded = len(batch) * max(w.sample.input_tokens for w in batch)
        assert padded <= limit or len(batch) == 1
    if limit == 10_000:
        assert len(batches) == 1
