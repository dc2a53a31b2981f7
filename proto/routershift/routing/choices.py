"""What the settings of router shift and routing replay choose from."""

from typing import Literal

LayerAggregation = Literal["mean", "product"]
Replay = Literal["none", "r2", "r3", "r3_weights"]
MismatchBaseline = Literal["none", "subtract"]
