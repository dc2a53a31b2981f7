"""What the settings of an algorithm choose from."""

import math
from typing import Literal

AdvantageKind = Literal["z_score", "mean", "leave_one_out"]
Aggregation = Literal["response_mean", "token_mean", "fixed_length"]
Application = Literal["before_clip", "after_clip"]
Proximal = Literal["behaviour", "recompute"]
CorrectionKind = Literal["none", "truncate", "mask", "sequence_mask"]

# Above it rho is truncated, or its token or response dropped.
CORRECTION_HIGH: dict[CorrectionKind, float] = {"none": math.inf, "truncate": 2.0, "mask": 5.0, "sequence_mask": 5.0}
