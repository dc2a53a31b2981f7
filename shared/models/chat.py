"""Conversations, put to a model by the chat template of its own tokenizer."""

import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from shared.errors import InvalidInputError, PreconditionError
from shared.models.tokenizer import backend, special_texts
from shared.names import did_you_mean

# Lines of a template's code in one rendering. A long conversation takes a few thousand; these take about a second.
_MAX_STEPS = 1_000_000
_LONGEST_REASON = 300  # characters of a template's own error
_UNDEFINED = re.compile(r"'(\w+)' is undefined")
_QUESTION = {"role": "user", "content": "."}
_TEMPLATE = "<template>"  # what Jinja names the code of a template that comes from no file


class _EndlessError(Exception):
    """A template that has taken too many steps."""


class ChatTemplate:
    """The chat template of one model, or another in its place."""

    def __init__(self, tokenizer: Any, model: Path, template: str | None = None, file: Path | None = None) -> None:
        """Args: tokenizer: of transformers; model: its folder, for messages; template: default: the tokenizer's;
        file: where the template stands, for messages."""
        self._tokenizer = tokenizer
        self._model = model
        self._template = template
        self._named = f"the chat template {file}" if file else "the chat template of the model"

    def check(self) -> None:
        """Raises PreconditionError for a template that is no Jinja; names line and fault."""
        from jinja2 import TemplateSyntaxError

        try:
            with _bounded():
                self._apply([{"role": "user", "content": ""}], None, None)
        except TemplateSyntaxError as error:
            raise PreconditionError(
                f"{self._named} is no Jinja template: line {error.lineno}: {error.message}; mend it there"
            ) from None
        except Exception:  # it may refuse this conversation in any way
            return

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
        try:
            with _bounded():
                return str(self._apply(messages, tools, variables))
        except _EndlessError:
            reason = f"it has not ended after {_MAX_STEPS} steps"
        except Exception as error:  # a template is a program: what it raises is its own choice
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
            if found := _UNDEFINED.search(reason):
                reason += did_you_mean(found[1], self._variables(variables))
        roles = ", ".join(str(message["role"]) for message in messages[:8])
        raise InvalidInputError(f"chat.messages of roles {roles} are refused by {self._named}: {reason}")

    def following(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampled: Sequence[int],
        added: Sequence[Mapping[str, Any]],
        calls: Sequence[str] = (),
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids that follow a turn as it was sampled: of `next_turn`, else of `appended`.

        Args:
            messages, sampled, added, tools, variables: as for `next_turn`.
            calls: as for `appended`.

        Raises:
            PreconditionError: as `render`.
            InvalidInputError: the template takes the messages in neither way.
        """
        try:
            ids = self.next_turn(messages, sampled, added, tools, variables)
        except InvalidInputError:  # it wants calls in its own form, or no such order of roles: appended may do
            ids = None
        return self.appended(sampled, added, calls, tools, variables) if ids is None else ids

    def next_turn(
        self,
        messages: Sequence[Mapping[str, Any]],
        sampled: Sequence[int],
        added: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int] | None:
        """The token ids that follow sampled ones where others speak, up to the next message of the assistant.

        What the model has read and sampled stays as it is: nothing is tokenized twice. It may take a second.

        Args:
            messages: the conversation so far, oldest first; the last one is the assistant's that was just sampled. What
                `render` made of the others is what it was sampled from.
            sampled: token ids of that message as they were sampled, with its end where the model wrote one.
            added: what others say now, such as the output of a tool.
            tools, variables: as for `render`.

        Returns:
            None where the template writes another text than the model has read and said, as those do that leave out
            the thoughts of earlier turns or trim white space: no ids could go on from what was sampled.

        Raises:
            PreconditionError, InvalidInputError: as `render`.
        """
        tokens = backend(self._tokenizer)
        so_far = self.render(messages[:-1], tools, variables)
        so_far += tokens.decode(list(sampled), skip_special_tokens=False)
        whole = self.render([*messages, *added], tools, variables)
        if not whole.startswith(so_far):
            return None
        ids: list[int] = tokens.encode(whole[len(so_far) :], add_special_tokens=False).ids
        return ids

    def appended(
        self,
        sampled: Sequence[int],
        added: Sequence[Mapping[str, Any]],
        calls: Sequence[str] = (),
        tools: Sequence[Any] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """The token ids that this template writes for new messages alone, where `next_turn` gives None.

        They are read off a neutral conversation of one question, one answer and the messages, and begin where its
        answer ends. So the turn that was sampled stays as it is, and what the template would have changed of earlier
        turns is not changed. It may take a second.

        Args:
            sampled: as for `next_turn`. Where it ends with a special token, that stands for the template's own end.
            calls: names of the tools that it called, for templates that take no output of a tool without a call.
            added, tools, variables: as for `next_turn`.

        Raises:
            PreconditionError: as `render`.
            InvalidInputError: the template refuses these messages, or leaves out the answer before them.
        """
        mark = _unlike(added)
        answer: dict[str, Any] = {"role": "assistant", "content": mark}
        try:
            whole = self.render([_QUESTION, answer, *added], tools, variables)
        except InvalidInputError:
            if not calls:
                raise
            answer["tool_calls"] = [_call(name, i, mark) for i, name in enumerate(calls)]
            whole = self.render([_QUESTION, answer, *added], tools, variables)
        _, answered, tail = whole.rpartition(mark)
        if not answered:
            raise InvalidInputError(
                f"{self._named} leaves out what the assistant said before messages of roles "
                f"{', '.join(str(message['role']) for message in added[:8])}; give text in their place, or another "
                "template"
            )
        tokens = backend(self._tokenizer)
        special = special_texts(tokens)
        if sampled and (end := special.get(sampled[-1])):
            _, is_the_templates, rest = tail.partition(end)
            if is_the_templates:
                tail = rest
            else:
                own = max((text for text in special.values() if tail.startswith(text)), key=len, default="")
                tail = tail[len(own) :]
        ids: list[int] = tokens.encode(tail, add_special_tokens=False).ids
        return ids

    def _apply(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, variables: Mapping[str, Any] | None
    ) -> Any:
        fixed = {"tokenize": False, "add_generation_prompt": True}
        return self._tokenizer.apply_chat_template(
            list(messages), tools=tools, chat_template=self._template, **{**(variables or {}), **fixed}
        )

    def _variables(self, given: Mapping[str, Any] | None) -> list[str]:
        """Those that a template can read."""
        return ["messages", "tools", "add_generation_prompt", *self._tokenizer.special_tokens_map, *(given or ())]


def _unlike(messages: Sequence[Mapping[str, Any]]) -> str:
    """A word that none of them has."""
    said = "".join(str(message) for message in messages)
    return next(word for i in itertools.count() if (word := f"answer{i}answer") not in said)


def _call(name: str, number: int, argument: str) -> dict[str, Any]:
    return {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": name, "arguments": {"input": argument}},
    }


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
