"""What the settings of router shift and routing replay choose from, and what follows from a choice."""

from typing import Literal

LayerAggregation = Literal["mean", "product"]
Replay = Literal["none", "r2", "r3", "r3_weights"]
MismatchBaseline = Literal["none", "subtract"]

# Settings of the learner that need scores in float16. What a code of one byte costs (`routershift.routing.score_code`)
# is bounded for a mean over layers, not for a sum; has another median than the mismatch; and changes combine weights.
NEEDS_EXACT_SCORES = {
    "router_shift.layer_aggregation": "product",
    "router_shift.mismatch_baseline": "subtract",
    "routing_replay": "r3_weights",
}
