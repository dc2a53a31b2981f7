"""A rank's part of a pass, where the ranks of a context group divide its row: equal parts, one after the other."""

from dataclasses import fields, replace
from typing import Any

import torch

from routershift.routing.shift import Routes
from services.learner.data.collate import Batch, Part
from services.learner.distributed.division import width_of


def part_of(batch: Batch, rank: int, ranks: int) -> Batch:
    """What one of these ranks computes of a pass of one row: see `Batch.part`. Nothing whole is kept of its routes."""
    width = width_of(batch.input_ids.numel(), ranks)
    own = (batch.rows // width == rank).nonzero()[:, 0]
    rows = batch.rows[own] - rank * width
    kept = batch.kept_positions
    traced = (batch.rows[kept] // width == rank).nonzero()[:, 0]
    routes = batch.routes
    if routes is not None:
        of_tokens = {field.name: getattr(routes, field.name) for field in fields(routes) if field.name != "traced"}
        of_own: dict[str, Any] = {name: values if values is None else values[own] for name, values in of_tokens.items()}
        # Which of its own tokens the kept ones are: these are in ascending order.
        of_kept = None if routes.traced is None else torch.searchsorted(own, kept[traced])
        routes = Routes(**of_own | {"rows": rows.clone(), "traced": of_kept})
    return replace(
        batch,
        rows=rows,
        targets=batch.targets[own],
        routes=routes,
        part=Part(own, len(batch.rows), traced, len(kept), batch.missing),
    )
