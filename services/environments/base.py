"""What an environment is: what the model reads after each of its turns, and what a turn has earned."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from routershift.trajectory import FinishReason, Role
from shared.table import Table


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class TextObservation:
    """Text that is tokenized as it is, after what the model has read and said."""

    text: str
    role: Role = Role.TOOL


@dataclass(frozen=True, slots=True)
class MessagesObservation:
    """Messages that the chat template of the model renders."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class TokensObservation:
    """Token ids that are read as they are."""

    token_ids: tuple[int, ...]
    role: Role = Role.TOOL


Observation = TextObservation | MessagesObservation | TokensObservation


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a tool that was read out of what the model said."""

    id: str  # unique in its episode
    name: str
    arguments: Mapping[str, Any] | None  # None where `error` says why it is no call
    error: str = ""  # for the model to read


@dataclass(frozen=True, slots=True)
class Action:
    """One turn of the model."""

    text: str  # without special tokens
    finish_reason: FinishReason  # stop, or length where the turn was cut
    tool_calls: tuple[ToolCall, ...] = ()  # none for an environment without tools


@dataclass(frozen=True, slots=True)
class Step:
    """What the environment answers to a turn."""

    observation: Observation | None = None  # None: there is nothing more to say, so the episode is done
    reward: float | None = None  # of this turn; None where that is left to the end, or to a verifier
    is_done: bool = False
    parts: Mapping[str, float] = field(default_factory=dict)  # of the whole reward, with the last turn; see `Verdict`


class EnvironmentSettings(Table):
    """What every environment can be told: a table [environments.named.NAME] of the recipe, without its `kind`."""


class Environment(ABC):
    """One episode. Made for it, and used by one caller at a time.

    Whatever is random follows from the task and the seed, so that the episodes of a group begin in the same state.
    The reward of an episode is the sum of those of its turns. A fault of the environment is raised, never rewarded
    with 0; a wrong or hostile action is no fault, and has an observation or a reward.
    """

    name: str
    version: str  # changes whenever an observation or a reward could
    description: str
    task_schema: Mapping[str, Any] = {"type": "object"}  # JSON Schema of what `reset` takes
    rewards: bool = True  # False: a prompt names the verifier that judges its episodes
    stop: Sequence[str] = ()  # texts that end a turn of the model, which keeps them
    Settings: ClassVar[type[EnvironmentSettings]] = EnvironmentSettings

    def __init__(self, settings: EnvironmentSettings) -> None:
        """Cheap: the service makes one of each to know them. What takes time belongs into `reset`."""
        self.settings = settings

    def check(self) -> None:  # noqa: B027 - most need nothing
        """Looks, when the service starts and within seconds, for what would keep it from playing.

        Raises:
            RouterShiftError: what is wrong with its settings, or with what they need.
        """

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """JSON schemas of functions that the model may call, as chat templates read them."""
        return ()

    @abstractmethod
    async def reset(self, task: Mapping[str, Any], seed: int) -> Observation | None:
        """Begins the episode; gives what the model reads after the prompt, None where the prompt says it all.

        Raises:
            InvalidInputError: the task is none of this environment; the prompt goes to the dead letters.
        """

    @abstractmethod
    async def step(self, action: Action) -> Step:
        """Answers a turn of the model. Cancelled at its deadline."""

    async def close(self) -> None:  # noqa: B027 - most need nothing
        """Frees what `reset` made, also where the episode was cut short."""
