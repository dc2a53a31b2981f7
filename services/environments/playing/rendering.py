"""From what is said in an episode to token ids of one model."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from routershift.v1 import trajectory_pb2 as pb
from routershift.wire.trajectories import ROLES
from services.environments.base import Message, MessagesObservation, Observation, TextObservation
from shared.errors import InvalidInputError, PreconditionError
from shared.models.chat import ChatTemplate
from shared.models.tokenizer import backend, encode, load_tokenizer


class Rendering:
    """The tokenizer and the chat template of the model that plays."""

    def __init__(self, tokenizer: Any, chat: ChatTemplate, variables: Mapping[str, Any] | None = None) -> None:
        """Args: tokenizer: of transformers; chat: its template, or another; variables: further ones of the template."""
        self._tokens = backend(tokenizer)
        self._chat = chat
        self._variables = variables
        self.vocab_size = self._tokens.get_vocab_size()

    @classmethod
    def of(cls, model: Path) -> "Rendering":
        """That of a model folder. Raises NotFoundError or CorruptDataError: see `load_tokenizer`."""
        tokenizer = load_tokenizer(model)
        return cls(tokenizer, ChatTemplate(tokenizer, model))

    async def prompt(self, prompt: pb.Prompt, tools: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of a prompt: its own, else of its conversation with the tools, else those of its text.

        Raises:
            InvalidInputError: it has none of the three, or the chat template refuses the conversation.
        """
        if prompt.token_ids:
            return list(prompt.token_ids)
        if prompt.text and not prompt.messages:
            return await self._encode(prompt.text, add_special_tokens=True)
        return await self.conversation(messages_of(prompt), tools)

    async def conversation(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]
    ) -> list[int]:
        """Token ids of a conversation, up to the next message of the assistant. Raises InvalidInputError as above."""
        if not messages:
            raise InvalidInputError("prompt is empty; set token_ids, text or messages")
        # The template writes the special tokens itself.
        return await self._encode(await self._render(self._chat.render, messages, list(tools) or None))

    async def observation(
        self,
        observation: Observation,
        sampled: Sequence[int],
        messages: Sequence[Mapping[str, Any]],
        calls: Sequence[str],
        tools: Sequence[Mapping[str, Any]],
    ) -> list[int]:
        """Token ids that follow the sampled ones of the last turn.

        Messages are what the chat template goes on with where it keeps what was read and said so far, and what it
        writes for them alone where it does not; see `ChatTemplate.following`.

        Args:
            messages: of the conversation so far, the last turn of the model at its end.
            calls: names of the tools that this turn called.

        Raises:
            InvalidInputError: the chat template takes the messages in neither way.
        """
        if isinstance(observation, TextObservation):
            return await self._encode(observation.text)
        if not isinstance(observation, MessagesObservation):
            return list(observation.token_ids)
        added = [as_dict(message) for message in observation.messages]
        return list(await self._render(self._chat.following, messages, sampled, added, calls, list(tools) or None))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text with special tokens, such as those that begin a call of a tool."""
        return str(self._tokens.decode(list(token_ids), skip_special_tokens=False))

    async def _render(self, method: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await asyncio.to_thread(lambda: method(*arguments, self._variables))
        except PreconditionError as error:  # no chat template
            raise InvalidInputError(str(error)) from None

    async def _encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return await encode(self._tokens, text, add_special_tokens=add_special_tokens)


def as_dict(message: Message) -> dict[str, Any]:
    """A message as chat templates read it."""
    return {"role": str(message.role), "content": message.content}


def messages_of(prompt: pb.Prompt) -> list[dict[str, Any]]:
    """The conversation of a prompt, as chat templates read it. Raises InvalidInputError for an unknown role."""
    messages = []
    for i, message in enumerate(prompt.messages):
        if (role := ROLES.get(message.role)) is None:
            raise InvalidInputError(
                f"prompt.messages[{i}].role is {message.role}; expected one of {list(ROLES.values())}"
            )
        messages.append({"role": str(role), "content": message.content})
    return messages
