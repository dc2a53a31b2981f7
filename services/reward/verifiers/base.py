"""What a verifier is: from a response and its reference to a reward made of named parts."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

from pydantic import Field

from services.reward.verifiers.thoughts import text_of
from shared.errors import MissingDependencyError
from shared.table import Table

# What two parts of most verdicts mean.
CORRECT = "1 for a right answer, 0 for a wrong one"
VALID = "1 where the response holds an answer that can be judged, else 0"

_ASSISTANT = "assistant"


def parts_schema(names: Mapping[str, str]) -> dict[str, Any]:
    """JSON Schema of the parts of verdicts, of what each of them means."""
    properties = {name: {"type": "number", "description": meaning} for name, meaning in names.items()}
    return {
        "type": "object",
        "properties": properties,
        "required": list(names),
        "additionalProperties": {"type": "number"},
    }


@contextmanager
def needs(verifier: str) -> Iterator[None]:
    """For the imports that a verifier makes when it starts.

    Raises:
        MissingDependencyError: a package is not installed; names the extra that has it.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"verifier {verifier} needs the package {error.name}: pip install 'routershift[reward]'"
        ) from None


class Item(NamedTuple):
    """One response to judge. `reference` is what the task says of the right answer; its form is the verifier's.

    Where tools or users spoke after the prompt, the response is what the model said last: what others said is no answer
    of its. `messages` has all of it.
    """

    prompt: str
    response: str  # without special tokens
    reference: Mapping[str, Any]
    special_tokens: Sequence[tuple[int, str]] = ()  # of the response: the character before which each stood, its text
    messages: Sequence[tuple[str, str]] = ()  # role and text of all after the prompt; () where the response is all

    def with_response(self, text: str) -> "Item":
        """The item with another text for its response, among the messages too."""
        messages = list(self.messages)
        for i in reversed(range(len(messages))):
            if tuple(messages[i]) == (_ASSISTANT, self.response):
                messages[i] = _ASSISTANT, text
                break
        return self._replace(response=text, messages=messages)

    def conversation(self) -> list[dict[str, str]]:
        """All that followed the prompt, as messages of role and content."""
        return [{"role": role, "content": text} for role, text in self.messages or ((_ASSISTANT, self.response),)]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A reward and what it is made of. `parts["correct"]` is 1.0 for a right answer and 0.0 for a wrong one."""

    reward: float
    parts: Mapping[str, float]


class VerifierError(Exception):
    """A verifier gives no verdict, and says by itself why and where."""


class VerifierSettings(Table):
    """What every verifier can be told: a table [reward.verifiers.NAME] of the recipe, without its `kind`."""

    timeout_seconds: float | None = Field(
        None, gt=0, description="deadline of one verification; default: that of [reward]"
    )
    start_seconds: float = Field(
        180.0, gt=0, description="deadline of a worker process that starts: imports, and the loading of a model"
    )
    environment: tuple[str, ...] = Field(
        (), description="names of environment variables of the service that its worker processes see, such as a key"
    )
    thinking: bool | None = Field(
        None,
        description="whether thoughts are in the text that is judged, <think>...</think> and their like; default: not "
        "where a final answer is looked for (choice, code, countdown, instructions, json_schema, math)",
    )
    special_tokens: bool = Field(
        False, description="whether special tokens such as <|im_end|> are in the text that is judged"
    )
    judging_seconds: float = Field(
        0.5,
        gt=0,
        description="CPU time in which math, regex and json_schema judge one response; one that takes more is wrong",
    )


class _Kind:
    """What all kinds of verifiers have."""

    name: ClassVar[str]
    version: ClassVar[str]
    description: ClassVar[str]
    thinking: ClassVar[bool] = True  # whether thoughts are in what it judges, unless its settings say
    reference_key: ClassVar[str] = ""  # where the one value of a reference stands; "" where it is not one value
    reference_schema: ClassVar[Mapping[str, Any]] = {"type": "object"}  # JSON Schema of a reference
    part_names: ClassVar[Mapping[str, str]] = {"correct": CORRECT}  # what a verdict's parts mean; there may be others
    Settings: ClassVar[type[VerifierSettings]] = VerifierSettings

    def __init__(self, settings: VerifierSettings) -> None:
        """Cheap: the service makes one of each to know them. What takes time belongs into `start`."""
        self.settings = settings

    @property
    def judged_by(self) -> str:
        """What a score names as its verifier's version."""
        return self.version

    @property
    def place(self) -> str:
        """The file and the function that judge, for messages on what they did to their process; "" where it is ours."""
        return ""

    def text(self, item: Item, thinking: bool | None = None) -> str:
        """What of the response is judged, as the settings `thinking` and `special_tokens` say.

        Args:
            thinking: in the place of the setting.
        """
        for choice in (self.settings.thinking, self.thinking):
            thinking = choice if thinking is None else thinking
        return text_of(
            item.response,
            item.prompt,
            item.special_tokens,
            with_thinking=bool(thinking),
            with_special_tokens=self.settings.special_tokens,
        )

    def check(self) -> None:
        """Looks, in the process of the service and within seconds, for what would keep it from judging.

        Raises:
            RouterShiftError: what is wrong with its settings, or with what they name.
        """


class Verifier(_Kind, ABC):
    """Judges one response at a time, in a worker process that is killed where a deadline passes.

    Stateless, so that any process may judge any item. `version` changes whenever a verdict could.
    """

    def start(self) -> None:  # most need nothing
        """Makes it ready to judge: loads and warms up. Called once, in a worker process, before the first item.

        Raises:
            RouterShiftError: it cannot judge here; the service says so and does not start.
        """

    def close(self) -> None:
        """Frees what `start` made. A worker that is killed does not come here."""

    @abstractmethod
    def verify(self, item: Item) -> Verdict:
        """Judges a response; any response, however malformed, has a verdict.

        Raises:
            InvalidInputError: the item cannot be judged, because of its *reference*: the fault of the task and not
                of the policy. The outcome is `refused`.
        """


class BatchVerifier(Verifier):
    """Judges many responses at once, for those that are faster so."""

    batch_size: int = 32  # 1: one at a time after all, in as many processes as other verifiers have

    @abstractmethod
    def verify_batch(self, items: Sequence[Item]) -> Sequence[Verdict | Exception]:
        """One verdict an item, in order, or what `verify` would raise for it; raises for the batch as a whole."""

    def verify(self, item: Item) -> Verdict:
        (verdict,) = self.verify_batch([item])
        if isinstance(verdict, Exception):
            raise verdict
        return verdict


class Parts(Protocol):
    """How a verifier that is made of others has them judge: `Scorer` is one."""

    @property
    def verifiers(self) -> "Mapping[str, Verifier | AsyncVerifier]":
        """Those that there are, by name."""
        ...

    async def verdicts(self, verifier: str, items: Sequence[Item]) -> list[Verdict]:
        """One an item.

        Raises:
            InvalidInputError: the verifier is one that asks, or has been asked by it.
            Exception: one of the items has no verdict.
        """
        ...


class AsyncVerifier(_Kind, ABC):
    """Judges by asking others, in the event loop of the service; it must not compute for long."""

    @abstractmethod
    async def verify(self, item: Item, others: Parts) -> Verdict:
        """As `Verifier.verify`; cancelled at its deadline."""

    async def close(self) -> None:
        """Frees channels."""
