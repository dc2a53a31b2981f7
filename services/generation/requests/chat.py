"""Conversations, put to a model by the chat template of its own tokenizer."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from shared.errors import InvalidInputError, PreconditionError


class ChatTemplate:
    """The chat template of a model folder.

    The first conversation imports transformers and loads the tokenizer.
    """

    def __init__(self, model: Path) -> None:
        self._model = model

    def render(self, messages: Sequence[tuple[str, str]]) -> str:
        """The text of a prompt for the next message of the assistant, special tokens included.

        Slow the first time. Call it outside of an event loop.

        Args:
            messages: pairs of a role and a content, oldest first.

        Raises:
            PreconditionError: the model has no chat template.
            InvalidInputError: the template refuses these messages.
        """
        from jinja2 import TemplateError

        if self._tokenizer.chat_template is None:
            raise PreconditionError(
                f"the tokenizer of model folder {self._model} has no chat_template; add one to its "
                "tokenizer_config.json, or send text or token_ids"
            )
        conversation = [{"role": role, "content": content} for role, content in messages]
        try:
            return str(self._tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True))
        except (TemplateError, TypeError, ValueError, LookupError) as error:
            roles = ", ".join(role for role, _ in messages[:8])
            raise InvalidInputError(
                f"chat.messages of roles {roles} are refused by the chat template of the model: {error}"
            ) from None

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._model, local_files_only=True)
