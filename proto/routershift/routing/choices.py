"""What the settings of router shift and routing replay choose from, and what follows from a choice."""

from typing import Literal

LayerAggregation = Literal["mean", "product"]
Replay = Literal["none", "r2", "r3", "r3_weights"]
MismatchBaseline = Literal["none", "subtract"]

# Settings of the learner that need scores in float16. What a code of one byte costs (`routershift.routing.score_code`)
# is bounded for a mean over layers, not for a sum; has another median than the mismatch; and changes combine weights.
NEEDS_EXACT_SCORES = (
    ("router_shift.layer_aggregation", "product"),
    ("router_shift.mismatch_baseline", "subtract"),
    ("routing_replay", "r3_weights"),
)

# Settings of the learner that need the routes of all layers: replay chooses experts in each, and what some layers say
# of the others has a bound for a mean, not for a sum.
NEEDS_ALL_LAYERS = (
    ("router_shift.layer_aggregation", "product"),
    ("routing_replay", "r3"),
    ("routing_replay", "r3_weights"),
)
