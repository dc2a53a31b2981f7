"""Parts of a row: together they are the pass."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from routershift.routing.shift import Routes
from services.learner.data.batch import MicroBatch, Weighted
from services.learner.data.collate import Batch, collate
from services.learner.data.part import part_of
from services.learner.distributed.division import width_of
from tests.support.batches import sample

SIZES = ((9, 2), (2, 6), (3, 1), (1, 4))  # (prompt, response) tokens: 10 + 7 + 3 + 4 of input


def whole() -> Batch:
    """The second and the last response are kept for people."""
    row = tuple(Weighted(sample(*size), (float(i),), kept=7 if i in (1, 3) else -1) for i, size in enumerate(SIZES))
    batch = collate(MicroBatch((row,)), with_routes=False, step=0)
    tokens = len(batch.rows)
    routes = Routes(
        rows=batch.rows.clone(),
        expert_ids=torch.arange(tokens * 4).view(tokens, 2, 2),
        log_scores=torch.rand(tokens, 2, 2),
        missing=torch.arange(tokens) % 5 == 0,
        lag_zero=torch.arange(tokens) % 2 == 0,
        traced=batch.kept_positions,
        layers=torch.arange(tokens * 2).view(tokens, 2).to(torch.uint8),
        stands_for=torch.ones(tokens, 2, dtype=torch.uint8),
    )
    return replace(batch, routes=routes)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 24])
def test_parts_are_the_pass_one_after_the_other(ranks: int) -> None:
    batch = whole()
    width = width_of(batch.input_ids.numel(), ranks)
    parts = [part_of(batch, rank, ranks) for rank in range(ranks)]
    joined: dict[str, list[Tensor]] = {"rows": [], "targets": [], "traced": []}
    for rank, each in enumerate(parts):
        assert each.part is not None
        assert each.routes is not None
        assert batch.routes is not None
        assert each.routes.traced is not None
        assert bool(((each.rows >= 0) & (each.rows < width)).all())
        joined["rows"].append(each.rows + rank * width)
        joined["targets"].append(each.targets)
        joined["traced"].append(each.part.tokens[each.routes.traced])
        assert torch.equal(each.routes.rows, each.rows)
        for name in ("expert_ids", "log_scores", "missing", "lag_zero", "layers", "stands_for"):
            assert torch.equal(getattr(each.routes, name), getattr(batch.routes, name)[each.part.tokens]), name
        assert torch.equal(batch.kept_positions[each.part.traced], each.part.tokens[each.routes.traced])
        assert (each.part.of_tokens, each.part.of_traced) == (13, 10)
        # What the loss is computed from stays whole.
        assert torch.equal(each.mask, batch.mask)
        assert torch.equal(each.versions, batch.versions)
        assert each.missing is not None
        assert torch.equal(each.missing, batch.routes.missing)
    assert torch.equal(torch.cat(joined["rows"]), batch.rows)
    assert torch.equal(torch.cat(joined["targets"]), batch.targets)
    assert torch.equal(torch.cat(joined["traced"]), batch.kept_positions)


def test_a_part_may_have_no_response_token_and_moves_as_a_whole_does() -> None:
    part = part_of(whole(), 0, 5)  # of prompt tokens alone
    assert part.rows.numel() == 0
    moved = part.to(torch.device("meta"))
    assert moved.part is not None
    assert moved.part.tokens.is_meta
    assert moved.part.of_tokens == 13


def test_a_pass_without_routes_has_parts_without() -> None:
    part = part_of(replace(whole(), routes=None), 1, 2)
    assert part.routes is None
    assert part.missing is None
