"""Router rows of the vLLM engine: taps, packing and unpacking, on routers made here."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from routershift.routing.layout import RouterLayout, ScoreFunction
from routershift.trajectory import RouterExport
from services.generation.engines.vllm.child.taps import BufferTaps, EagerTaps, RowPacker, Taps
from services.generation.engines.vllm.output import plausible
from services.generation.engines.vllm.rows import row_bytes, unpack_rows
from shared.errors import PreconditionError

LAYERS, TOP_K, TOKENS = 2, 3, 6
CPU = torch.device("cpu")


class Router:
    """Chooses the highest logits."""

    def __init__(self, experts: int) -> None:
        self.global_num_experts, self.top_k = experts, TOP_K

    def _compute_routing(self, hidden: torch.Tensor, logits: torch.Tensor, dtype: Any = None) -> Any:
        weights, ids = logits.topk(TOP_K)
        return weights, ids.int()


def layout_of(experts: int, function: ScoreFunction = ScoreFunction.SOFTMAX) -> RouterLayout:
    return RouterLayout((1, 4), experts, TOP_K, function)


def tap(kind: str, routers: list[Router], export: RouterExport) -> Taps:
    logits = export is not RouterExport.IDS
    return EagerTaps(routers, logits) if kind == "eager" else BufferTaps(routers, logits, 2 * TOKENS, CPU)


def step(routers: list[Router], seed: int, tokens: int = TOKENS) -> torch.Tensor:
    """Runs the routers on random logits [L, tokens, E], which it returns."""
    logits = 4 * torch.randn(len(routers), tokens, routers[0].global_num_experts, generator=torch.manual_seed(seed))
    for router, own in zip(routers, logits, strict=True):
        router._compute_routing(torch.empty(tokens, 1), own)
    return logits


@pytest.mark.parametrize("kind", ["eager", "buffer"])
@pytest.mark.parametrize("export", [RouterExport.IDS, RouterExport.TOPK, RouterExport.FULL])
@pytest.mark.parametrize("function", list(ScoreFunction))
@pytest.mark.parametrize("experts", [16, 300])
def test_rows_hold_what_the_routers_did(kind: str, export: RouterExport, function: ScoreFunction, experts: int) -> None:
    routers = [Router(experts) for _ in range(LAYERS)]
    packer = RowPacker(tap(kind, routers, export), export, function, experts)
    step(routers, 0, TOKENS + 1)  # an earlier step leaves nothing behind
    logits = step(routers, 1)
    for sampled in ([1, 4, 5], list(range(TOKENS))):
        rows = packer.pack(torch.tensor(sampled), TOKENS)
        assert rows is not None
        layout = layout_of(experts, function)
        assert rows.shape == (len(sampled), LAYERS * row_bytes(layout, export))
        trace = unpack_rows(rows.numpy(), layout, export, len(sampled))

        own = logits[:, sampled].transpose(0, 1)
        picked, ids = own.topk(TOP_K)
        assert trace.expert_ids.dtype == layout.id_dtype
        assert np.array_equal(trace.expert_ids, ids)
        expected = {
            ScoreFunction.SOFTMAX: picked - own.logsumexp(-1, keepdim=True),
            ScoreFunction.SIGMOID: logsigmoid(picked),
            ScoreFunction.SOFTMAX_TOPK: picked - picked.logsumexp(-1, keepdim=True),
        }[function]
        if export is RouterExport.IDS:
            assert trace.log_scores is None
        else:
            np.testing.assert_allclose(trace.scores, expected, rtol=1e-3, atol=1e-6)
        if export is RouterExport.FULL:
            assert trace.logits is not None
            assert np.array_equal(trace.logits, own.half())
        else:
            assert trace.logits is None
        step(routers, 1)  # what was taken is not there any more


@pytest.mark.parametrize("export", [RouterExport.IDS, RouterExport.TOPK])
def test_a_router_that_is_not_seen_leaves_no_rows(export: RouterExport) -> None:
    routers = [Router(8) for _ in range(LAYERS)]
    eager = RowPacker(tap("eager", routers, export), export, "softmax", 8)
    everything = torch.arange(TOKENS)
    assert eager.pack(everything, TOKENS) is None
    step(routers[:1], 0)
    assert eager.pack(everything, TOKENS) is None, "one layer is missing"
    step(routers, 0)
    assert eager.pack(everything, TOKENS) is not None
    assert eager.pack(everything, TOKENS) is None, "these are the rows of the step before"
    step(routers, 0, TOKENS // 2)
    assert eager.pack(everything, TOKENS) is None, "routers that see half of the tokens, as in sequence parallelism"

    untouched = [Router(8) for _ in range(LAYERS)]
    buffer = RowPacker(tap("buffer", untouched, export), export, "softmax", 8)
    step(untouched[:1], 0)
    assert buffer.pack(everything, TOKENS) is None


def test_a_graph_that_goes_past_a_router_leaves_no_row_of_an_earlier_step() -> None:
    routers = [Router(8) for _ in range(LAYERS)]
    packer = RowPacker(tap("buffer", routers, RouterExport.TOPK), RouterExport.TOPK, "softmax", 8)
    everything, traces = torch.arange(TOKENS), []
    for seen in (routers, routers[:1]):
        step(seen, 0)
        rows = packer.pack(everything, TOKENS)
        assert rows is not None
        traces.append(unpack_rows(rows.numpy(), layout_of(8), RouterExport.TOPK, TOKENS))
    assert plausible(traces[0])
    assert not plausible(traces[1])


@pytest.mark.parametrize(("rows", "match"), [(None, "were not seen.*for 3 tokens"), (2, "2 router rows for 3 tokens")])
def test_rows_that_do_not_match_the_tokens_are_refused(rows: int | None, match: str) -> None:
    layout = layout_of(8)
    array = None if rows is None else np.zeros((rows, LAYERS * row_bytes(layout, RouterExport.TOPK)), np.uint8)
    with pytest.raises(PreconditionError, match=match):
        unpack_rows(array, layout, RouterExport.TOPK, 3)


def test_a_sample_without_tokens_has_an_empty_trace() -> None:
    full = unpack_rows(None, layout_of(8), RouterExport.FULL, 0)
    assert full.expert_ids.shape == full.scores.shape == (0, LAYERS, TOP_K)
    assert full.logits is not None
    assert full.logits.shape == (0, LAYERS, 8)
    assert unpack_rows(None, layout_of(8), RouterExport.IDS, 0).log_scores is None
