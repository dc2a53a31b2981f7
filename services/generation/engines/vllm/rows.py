"""Router rows on their way out of vLLM's child: the format, in numpy alone.

A row is what one token's routers did in all L routed layers: L times the ids of K experts (`RouterLayout.id_dtype`),
then their K log-scores (float16; export topk and full), then all E logits (float16; export full).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from routershift.routing.layout import RouterLayout
from routershift.trajectory import RouterExport, RouterTrace
from shared.errors import PreconditionError


def unpack_rows(rows: NDArray[np.uint8] | None, layout: RouterLayout, export: RouterExport, tokens: int) -> RouterTrace:
    """The trace that the bytes of rows [tokens, L * W] are; they may be None where there are no tokens.

    Raises:
        PreconditionError: there is not exactly one row for each token.
    """
    layers, width = len(layout.layer_ids), row_bytes(layout, export)
    if rows is None and tokens == 0:
        rows = np.empty((0, layers * width), np.uint8)
    if rows is None:
        raise PreconditionError(
            f"the routers were not seen: vLLM handed over no rows for {tokens} tokens; where this MoE backend routes "
            "inside its kernel, set generation.vllm.moe_backend to 'triton', or generation.router_export to 'none'"
        )
    if len(rows) != tokens:
        raise PreconditionError(
            f"vLLM handed over {len(rows)} router rows for {tokens} tokens; use the pinned vLLM release, or engine "
            "'torch'"
        )
    rows = rows.reshape(tokens, layers, width)
    ids_end = layout.top_k * layout.id_dtype.itemsize
    scores_end = ids_end + 2 * layout.top_k
    ids: Any = _part(rows, 0, ids_end, layout.id_dtype)
    return RouterTrace(
        layout,
        ids,
        None if export is RouterExport.IDS else _part(rows, ids_end, scores_end, np.dtype(np.float16)),
        _part(rows, scores_end, rows.shape[-1], np.dtype(np.float16)) if export is RouterExport.FULL else None,
    )


def row_bytes(layout: RouterLayout, export: RouterExport) -> int:
    """Bytes of one layer of one row. `export` is not none."""
    ids = layout.top_k * layout.id_dtype.itemsize
    scores = 0 if export is RouterExport.IDS else 2 * layout.top_k
    logits = 2 * layout.num_experts if export is RouterExport.FULL else 0
    return ids + scores + logits


def _part(rows: NDArray[np.uint8], begin: int, end: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(rows[..., begin:end]).view(dtype)
