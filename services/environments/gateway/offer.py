"""What an agent is offered to play, and how it may end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from routershift.client.requests import Sampling


class End(StrEnum):
    """How an episode ended, the label of the metrics."""

    REWARDED = "rewarded"
    CLOSED = "closed"  # by its agent, without a reward
    AGENT_ENDED = "agent_ended"  # the process of its agent, which was started here
    TIMED_OUT = "timed_out"
    UNCLAIMED = "unclaimed"
    GIVEN_UP = "given_up"  # another of its group failed, or the service stops


@dataclass(frozen=True, slots=True)
class Given:
    """What an agent says that its episode was worth."""

    reward: float | None  # None: a verifier judges it, or nobody does
    parts: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Offer:
    """What all episodes of a group have in common, or what a caller opened one for."""

    environment: str
    prompt: str
    messages: Sequence[Mapping[str, Any]]
    task: Mapping[str, Any]
    max_tokens: int  # that the model samples in all turns of an episode together
    max_model_len: int
    sampling: Sampling | None = None  # of every turn, without n, seed and max_tokens; None: as each request says
    seed: int | None = None
    return_router: bool = False
    is_judged: bool = False  # by a verifier, so that the agent gives no reward
    claim_seconds: float = 0.0

    @property
    def is_trained(self) -> bool:
        """Whether the episode is of a group, whose turns are sampled as the learner expects."""
        return self.sampling is not None
