"""How an episode fails: by no fault of the policy, so that it has no reward."""

from enum import StrEnum

from shared.errors import RouterShiftError


class Reason(StrEnum):
    """Why, the label of the metrics."""

    ENVIRONMENT_FAILED = "environment_failed"  # it raised, or answered what is no answer
    ENVIRONMENT_TIMED_OUT = "environment_timed_out"  # it did not answer within `turn_seconds`
    AGENT_ENDED = "agent_ended"  # the process of the agent that played it
    EPISODE_TIMED_OUT = "episode_timed_out"  # all turns together took longer than `episode_seconds`
    ABORTED = "aborted"  # a turn was cut by new weights as often as `attempts` allows


class EpisodeFailedError(RouterShiftError, RuntimeError):
    """An episode has no end that could be rewarded. Another attempt may have one."""

    def __init__(self, message: str, reason: Reason = Reason.ENVIRONMENT_FAILED) -> None:
        super().__init__(message)
        self.reason = reason
