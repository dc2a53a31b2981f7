"""Conversations, put to a model by the chat template of its own tokenizer."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from shared.errors import InvalidInputError, PreconditionError

# Lines of a template's code in one rendering. A long conversation takes a few thousand; these take about a second.
_MAX_STEPS = 1_000_000
_LONGEST_REASON = 300  # characters of a template's own error
_TEMPLATE = "<template>"  # what Jinja names the code of a template that comes from no file


class _EndlessError(Exception):
    """A template that has taken too many steps."""


class ChatTemplate:
    """The chat template of one model, or another in its place."""

    def __init__(self, tokenizer: Any, model: Path, template: str | None = None) -> None:
        """Args: tokenizer: of transformers; model: its folder, for messages; template: default: the tokenizer's."""
        self._tokenizer = tokenizer
        self._model = model
        self._template = template

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The text of a prompt for the next message of the assistant, special tokens included.

        It may take a second. Call it outside of an event loop.

        Args:
            messages: with `role` and `content` each, and what else the template reads; oldest first.
            tools: JSON schemas of functions that the model may call.
            variables: further ones of the template, such as enable_thinking.

        Raises:
            PreconditionError: the model has no chat template.
            InvalidInputError: the template refuses these messages, fails, or does not end.
        """
        if self._template is None and self._tokenizer.chat_template is None:
            raise PreconditionError(
                f"the tokenizer of model folder {self._model} has no chat_template; add one to its "
                "tokenizer_config.json, or send text or token_ids"
            )
        fixed = {"tokenize": False, "add_generation_prompt": True}
        try:
            with _bounded():
                return str(
                    self._tokenizer.apply_chat_template(
                        list(messages), tools=tools, chat_template=self._template, **{**(variables or {}), **fixed}
                    )
                )
        except _EndlessError:
            reason = f"it has not ended after {_MAX_STEPS} steps"
        except Exception as error:  # a template is a program: what it raises is its own choice
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
        roles = ", ".join(str(message["role"]) for message in messages[:8])
        raise InvalidInputError(
            f"chat.messages of roles {roles} are refused by the chat template of the model: {reason}"
        )


@contextmanager
def _bounded() -> Iterator[None]:
    """Raises _EndlessError in this thread once templates have run `_MAX_STEPS` lines within the block.

    Jinja's sandbox bounds neither nested loops nor recursion through macros, and nothing can end a thread.
    """
    steps = 0

    def step(frame: FrameType, event: str, argument: Any) -> Callable[..., Any]:
        nonlocal steps
        steps += 1
        if steps > _MAX_STEPS:
            raise _EndlessError
        return step

    def call(frame: FrameType, event: str, argument: Any) -> Callable[..., Any] | None:
        return step if frame.f_code.co_filename == _TEMPLATE else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)
