"""Packing, alignment, micro-batches, and batches as bytes."""

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from routershift.algorithms.aggregation import Totals
from routershift.routing import score_code
from routershift.trajectory import Role, Segment, VersionSpan
from services.learner.data.batch import MicroBatch, Weighted, flat_micro_batches, micro_batches, pack
from services.learner.data.collate import Batch, Update, collate, decode, encode
from tests.support.batches import sample
from tests.support.models import save_model
from tests.support.rollouts import load, packed, random_groups
from tests.support.training import trace_of, with_trace


def weighted(*sizes: tuple[int, int]) -> list[Weighted]:
    return [Weighted(sample(prompt, response), (float(i),)) for i, (prompt, response) in enumerate(sizes)]


def test_every_token_is_aligned_with_the_position_that_predicts_it() -> None:
    spans = (VersionSpan(3, 1), VersionSpan(5, 2))
    first, second, third = (
        Weighted(sample(2, 3, spans), (0.5,)),
        Weighted(sample(2, 1), (-1.0,)),
        Weighted(sample(4, 2), (2.0,)),
    )
    batch = collate(MicroBatch(((first, second), (third,))), with_routes=False, step=5)
    assert batch.input_ids.tolist() == [[100, 101, 200, 201, 100, 101], [100, 101, 102, 103, 200, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 4, 5]]
    assert batch.mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    assert batch.targets.tolist() == [200, 201, 202, 200, 200, 201]
    assert batch.versions.tolist() == [3, 5, 5, 0, 0, 0]
    assert batch.advantages.tolist() == [0.5, -1.0, 2.0]
    np.testing.assert_allclose(batch.behaviour_logprobs[batch.mask], [-0.1, -0.2, -0.3, -0.1, -0.1, -0.2])
    # The first response token is predicted by the last prompt token, each other one by the token before it.
    assert batch.input_ids.flatten()[batch.rows].tolist() == [101, 200, 201, 101, 103, 200]


def test_given_tokens_are_read_and_never_predicted() -> None:
    """Sampled 200 and 201; a tool's 300 to 302; sampled 202; a tool's 303, which nothing follows."""
    made = sample(2, 3, (VersionSpan(3, 2), VersionSpan(5, 1)))
    parts = ((Role.ASSISTANT, 2), (Role.TOOL, 3), (Role.ASSISTANT, 1), (Role.TOOL, 1))
    segments = tuple(Segment(role, tokens, role is Role.ASSISTANT) for role, tokens in parts)
    given_ids = np.arange(300, 304, dtype=np.int32)
    episode = Weighted(
        replace(made, trajectory=replace(made.trajectory, segments=segments, given_ids=given_ids)), (0.5,)
    )
    assert episode.sample.input_tokens == 7
    batch = collate(MicroBatch(((Weighted(sample(2, 1), (-1.0,)), episode),)), with_routes=False, step=5)
    assert batch.input_ids.tolist() == [[100, 101, 100, 101, 200, 201, 300, 301, 302]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 3, 4, 5, 6]]
    assert batch.targets.tolist() == [200, 200, 201, 202]
    assert batch.mask.tolist() == [[True, False, False], [True, True, True]]
    assert batch.versions.tolist() == [0, 3, 3, 5]
    # The first token after a tool's is predicted by the last of them.
    assert batch.input_ids.flatten()[batch.rows].tolist() == [101, 101, 200, 302]


def test_logits_and_routes_are_read_where_the_behaviour_policy_recorded_them(tmp_path: Path) -> None:
    """Packed rows give back what was recorded one response at a time: no sequence sees another."""
    model = load(save_model(tmp_path))
    samples = [Weighted(s, (1.0,)) for group in random_groups(model, groups=6, samples=3) for s in group.samples]
    (micro_batch,) = micro_batches(samples, 100_000)
    assert len(micro_batch.rows) < len(samples)
    batch = collate(micro_batch, with_routes=True, step=0)
    with torch.no_grad():
        output = model(batch.input_ids, position_ids=batch.position_ids, output_router_logits=True, use_cache=False)
    logprobs = output.logits.flatten(0, 1)[batch.rows].log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
    torch.testing.assert_close(logprobs, batch.behaviour_logprobs[batch.mask], rtol=1e-5, atol=1e-5)
    assert batch.routes is not None
    assert batch.routes.lag_zero.all()
    for layer, logits in enumerate(output.router_logits):
        scores = logits.log_softmax(-1)[batch.routes.rows].gather(1, batch.routes.expert_ids[:, layer].long())
        torch.testing.assert_close(scores, batch.routes.log_scores[:, layer].float(), rtol=1e-3, atol=1e-3)


def test_scores_of_both_kinds_in_one_batch_are_compared_as_codes(tmp_path: Path) -> None:
    """As after an upgrade, or a new setting: some groups in flight are older."""
    model = load(save_model(tmp_path))
    groups = random_groups(model, groups=2, samples=2)
    exact = packed(groups).routes
    mixed = packed([with_trace(groups[0], log_scores=trace_of(groups[0]).coded().log_scores), groups[1]]).routes
    assert exact is not None
    assert mixed is not None
    assert mixed.log_scores.dtype == torch.uint8
    assert mixed.log_scores.tolist() == score_code.encode(exact.log_scores.numpy()).tolist()


@pytest.mark.parametrize("limit", [1, 20, 64, 10_000])
@pytest.mark.parametrize("ranks", [1, 3])
def test_micro_batches_hold_every_sample_once_within_the_limit(limit: int, ranks: int) -> None:
    rng = np.random.default_rng(0)
    samples = weighted(*((int(rng.integers(1, 9)), int(rng.integers(1, 20))) for _ in range(50)))
    width = max(w.sample.input_tokens for w in samples)
    batches = micro_batches(samples, limit, ranks)
    real = [batch for batch in batches if not batch.filler]
    assert sorted(w.advantages for batch in real for w in batch.samples) == [w.advantages for w in samples]
    assert len(batches) % ranks == 0
    assert len(batches) - len(real) < ranks
    for batch in batches:
        assert len(batch.rows) * width <= limit or len(batch.rows) == 1
    if limit == 10_000:
        assert len(batches) == ranks


@pytest.mark.parametrize("limit", [1, 20, 64, 10_000])
@pytest.mark.parametrize("ranks", [1, 3])
def test_flat_micro_batches_have_one_row_of_about_as_many_tokens(limit: int, ranks: int) -> None:
    rng = np.random.default_rng(0)
    samples = weighted(*((int(rng.integers(1, 9)), int(rng.integers(1, 20))) for _ in range(50)))
    batches = flat_micro_batches(samples, limit, ranks)
    real = [batch for batch in batches if not batch.filler]
    assert sorted(w.advantages for batch in real for w in batch.samples) == [w.advantages for w in samples]
    assert len(batches) % ranks == 0
    assert len(batches) - len(real) < ranks
    sizes = []
    for batch in batches:
        (row,) = batch.rows
        lengths = [w.sample.input_tokens for w in row]
        assert lengths == sorted(lengths, reverse=True)
        assert sum(lengths) <= limit or len(row) == 1
        sizes.append(sum(lengths))
    longest = max(w.sample.input_tokens for w in samples)
    if limit > longest:
        assert max(sizes) - min(sizes) <= longest
        assert len(batches) <= 2 * -(-sum(sizes) // limit) + ranks
    if limit == 10_000:
        assert len(batches) == ranks


def test_a_flat_row_has_no_padding() -> None:
    samples = weighted((2, 3), (4, 2), (2, 3))
    (micro_batch,) = flat_micro_batches(samples, 100)
    batch = collate(micro_batch, with_routes=False, step=0)
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 0, 1, 2, 3]]
    assert batch.input_ids.numel() == sum(w.sample.input_tokens for w in samples)


def test_a_flat_filler_is_the_shortest_sample() -> None:
    real, other, filler = flat_micro_batches(weighted((3, 4), (3, 2)), 100, ranks=3)
    assert [batch.filler for batch in (real, other, filler)] == [False, False, True]
    assert filler.rows == other.rows


def test_ranks_without_a_share_compute_a_copy_that_counts_for_nothing() -> None:
    real, filler = micro_batches(weighted((3, 4)), 100, ranks=2)
    assert (real.filler, filler.filler) == (False, True)
    assert filler.rows == real.rows


def test_rows_are_full_before_another_begins() -> None:
    rows = pack(weighted((3, 8), (2, 5), (1, 4), (1, 3), (1, 1)))  # 10, 6, 4, 3 and 1 tokens
    assert [[w.sample.input_tokens for w in row] for row in rows] == [[10], [6, 4], [3, 1]]


def test_batches_travel_between_ranks_unchanged(tmp_path: Path) -> None:
    model = load(save_model(tmp_path))
    groups = random_groups(model, groups=2, samples=3)
    some = trace_of(groups[0]).thinned(2, seed=0).coded()
    groups[0] = with_trace(groups[0], expert_ids=some.expert_ids, log_scores=some.log_scores, layers=some.layers)
    packed = [MicroBatch((tuple(Weighted(s, (0.5,), kept=i) for s in g.samples),)) for i, g in enumerate(groups, -1)]
    batches = [collate(packed[0], with_routes=True, step=0), collate(packed[1], with_routes=True, step=1)]
    other = collate(MicroBatch(packed[0].rows, filler=True), with_routes=False, step=0)
    sent = [Update(Totals(6, 30, 12), tuple(batches)), Update(Totals(3, 9, 12), (other,))]
    received = decode(encode(sent))
    assert [update.totals for update in received] == [update.totals for update in sent]
    for before, after in zip(
        [b for u in sent for b in u.batches], [b for u in received for b in u.batches], strict=True
    ):
        assert_same(before, after)


def assert_same(before: Batch, after: Batch) -> None:
    for field in fields(Batch):
        left, right = getattr(before, field.name), getattr(after, field.name)
        if field.name == "routes":
            assert (left is None) == (right is None)
            for inner in fields(left) if left is not None else ():
                assert_equal(getattr(left, inner.name), getattr(right, inner.name))
        else:
            assert_equal(left, right)


def assert_equal(left: torch.Tensor | None, right: torch.Tensor | None) -> None:
    if left is None or right is None:
        assert left is right
        return
    assert left.dtype == right.dtype
    assert torch.equal(left, right)
