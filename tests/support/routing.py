"""Routers that moved, and a meter of their shift."""

import torch

from routershift.routing.layout import ScoreFunction
from routershift.routing.shift import Routes, ShiftMeter

SCALE = 0.02  # moves the routers enough that some tokens fall below gamma_min and some top-k sets change


def meter_of(routes: Routes, baseline: torch.Tensor | None = None) -> ShiftMeter:
    layers = routes.expert_ids.shape[1]
    return ShiftMeter(routes, layers, ScoreFunction.SOFTMAX, "mean", baseline)
