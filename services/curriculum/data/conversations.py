"""From the messages of a row to the text and the token ids that the policy reads."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from routershift.client.requests import Message as PlainMessage
from routershift.trajectory import Role
from services.curriculum.data.rows import RowError, in_words
from services.curriculum.data.settings import SourceSettings
from shared.errors import InvalidInputError, NotFoundError, PreconditionError
from shared.models.chat import ChatTemplate

Message = Mapping[str, Any]
PROMPT = "prompt"  # the role of the column that conversations come from, for RowErrors


def conversation(prompt: Any, system: str | None) -> list[Message]:
    """The messages of a prompt: those of a column as they are, or a text as the user's only one.

    Raises:
        RowError: neither text nor messages, or messages that a response cannot follow.
    """
    messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _messages(prompt)
    if system is not None:
        if messages[0]["role"] == "system":
            raise RowError(PROMPT, "the row has a message of the system, and so has the recipe; take one out")
        messages = [{"role": "system", "content": system}, *messages]
    return messages


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        what = "it is empty" if value == [] else "expected text, or a list of messages"
        raise RowError(PROMPT, f"{what}; mend the row, or name another column", value)
    for message in value:
        role = message.get("role") if isinstance(message, Mapping) else None
        if not isinstance(role, str) or not role or not message.keys() & {"content", "tool_calls"}:
            raise RowError(PROMPT, "a message has no role or no content; expected role and content", message)
    if value[-1]["role"] == "assistant":
        raise RowError(
            PROMPT,
            "the last message is the assistant's: the response would follow it; leave it out, as with "
            "columns.prompt = '{{ messages[:-1] }}'",
            value[-1].get("content"),
        )
    # Parquet fills the keys that only some messages have with None.
    return [{key: part for key, part in message.items() if part is not None} for message in value]


def plain(messages: Sequence[Message]) -> tuple[PlainMessage, ...]:
    """The same as role and text alone, as prompts carry them to an environment.

    Raises:
        RowError: a role that there is not, a call of a tool, or content that is no text.
    """
    for message in messages:
        if message["role"] not in tuple(Role):
            raise RowError(PROMPT, f"a message has an unknown role; expected one of {', '.join(Role)}", message["role"])
        if not isinstance(message.get("content"), str) or "tool_calls" in message:
            raise RowError(
                PROMPT, "a message is no text alone; for an environment, write each with role and content", message
            )
    return tuple({"role": message["role"], "content": message["content"]} for message in messages)


def said(messages: Sequence[Message]) -> str:
    """What all but the system say, for comparing prompts that differ in what stands around them."""
    texts = [_text(message.get("content")) for message in messages if message["role"] != "system"]
    return "\n".join(texts)


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


class Renderer:
    """Renders and tokenizes the prompts of one source."""

    def __init__(self, settings: SourceSettings, where: str, tokenizer: Any, model: Path) -> None:
        """Args: where: the table, for messages. tokenizer: of transformers. model: its folder.

        Raises:
            PreconditionError: the model has no chat template, and the recipe names none; or the template is no Jinja.
            NotFoundError: there is no such template file.
        """
        self._settings, self._where, self._tokenizer = settings, where, tokenizer
        template, file = None, None
        if isinstance(settings.chat_template, Path):
            file = settings.chat_template
            template = _read_template(where, file)
        elif settings.chat_template and tokenizer.chat_template is None:
            raise PreconditionError(
                f"{where}.chat_template is true, and the tokenizer of model folder {model} has no chat template; set "
                f"{where}.chat_template to false, for the text as it is, or to a file with a template"
            )
        self._chat = ChatTemplate(tokenizer, model, template, file)
        if settings.chat_template is not False:
            self._chat.check()

    def render(self, messages: Sequence[Message], tools: Any) -> str:
        """The text of the prompt, special tokens included.

        Raises:
            RowError: the template refuses the messages, or they cannot be put without one.
        """
        if self._settings.chat_template is False:
            if len(messages) > 1 or not isinstance(messages[0].get("content"), str):
                reason = f"a conversation needs a chat template; set {self._where}.chat_template = true"
                raise RowError(PROMPT, reason, messages)
            return str(messages[0]["content"])
        try:
            return self._chat.render(messages, tools=tools, variables=self._settings.template_kwargs)
        except InvalidInputError as error:
            said_by_chat = str(error).removeprefix("chat.")
            raise RowError(PROMPT, f"{said_by_chat}; change them, or {self._where}.chat_template") from None

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of rendered prompts, each token once: the template has written its special tokens itself."""
        if not texts:
            return []
        templated = self._settings.chat_template is not False
        encoded = [list(ids) for ids in self._tokenizer(list(texts), add_special_tokens=not templated).input_ids]
        if not templated and (bos := self._tokenizer.bos_token_id) is not None:
            # A text that was rendered before has the first token already.
            encoded = [ids[1:] if ids[:2] == [bos, bos] else ids for ids in encoded]
        return encoded


def _read_template(where: str, path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NotFoundError(
            f"{where}.chat_template is {path}, which cannot be read: {error}; name a Jinja file, relative to the recipe"
        ) from None


def as_tools(value: Any) -> list[Any] | None:
    """The tools of a row; none where it has none. Raises RowError for what is no list of tables."""
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise RowError("tools", f"is {in_words(value)}; expected a list of tables, as JSON schemas of functions")
    return value
