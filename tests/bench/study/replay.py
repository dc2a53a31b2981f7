"""Routing replay that is not blind: experts which the learner's own router would hardly choose are not replayed.

Shapes: N tokens of a forward pass, K experts activated per token, E experts.
"""

import math
from typing import Any

import torch
from torch import Tensor

from routershift.routing.families import families
from routershift.routing.layout import ScoreFunction
from routershift.routing.routers import log_scores, read, require_layout, reroute, routers_of


def replay_above(model: Any, ratio: float) -> None:
    """From now on the routers keep of the experts that they were made to replay those that `filtered` keeps.

    Args:
        model: in training, whose routers replay already: its hooks run first.
        ratio: as for `filtered`.
    """
    function, family = require_layout(model).score_function, families()[model.config.model_type]

    def choose(router: Any, inputs: Any, output: Any) -> Any:
        logits, replayed = read(family, router, output)
        return reroute(family, router, output, filtered(logits.detach(), replayed, ratio, function))

    for router in routers_of(model).values():
        router.register_forward_hook(choose)


def filtered(logits: Tensor, replayed: Tensor, ratio: float, function: ScoreFunction) -> Tensor:
    """The experts [N, K] int64 of a thresholded replay, as prime-rl's pull request 2703 defines it.

    A replayed expert stays where its live score is at least `ratio` times that of the weakest of the K experts that the
    router itself would choose; those that do not stay are replaced by the router's own, the highest first.

    Args:
        logits: [N, E] of the live router.
        replayed: [N, K] int64, all different for a token.
        ratio: of scores, above 0.
    """
    own = logits.topk(replayed.shape[1], dim=-1).indices
    weakest = log_scores(function, logits, own)[:, -1:]
    stays = log_scores(function, logits, replayed) >= weakest + math.log(ratio)
    doubled = ((own[:, :, None] == replayed[:, None, :]) & stays[:, None, :]).any(dim=-1)
    last = torch.cat([torch.where(stays, 0, 2), torch.where(doubled, 2, 1)], dim=1)  # by when it is taken
    order = last.argsort(dim=1, stable=True)[:, : replayed.shape[1]]
    return torch.cat([replayed, own], dim=1).gather(1, order)
