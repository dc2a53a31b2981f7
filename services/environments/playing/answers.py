"""What an environment answers, looked at before it is believed: it may be anybody's code."""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from routershift.trajectory import Role
from services.environments.base import (
    Message,
    MessagesObservation,
    Observation,
    Step,
    TextObservation,
    TokensObservation,
)
from shared.errors import InvalidInputError
from shared.models.tokenizer import CHARACTERS_PER_TOKEN

MOST_PARTS = 64
LONGEST_NAME = 64  # characters of a part's name
_MOST_MESSAGES = 256


def checked_observation(answer: object, most_tokens: int, vocab_size: int) -> Observation | None:
    """An observation of the right types that is not obviously too long.

    Raises:
        InvalidInputError: it is none; names what it is.
    """
    most = most_tokens * CHARACTERS_PER_TOKEN
    match answer:
        case None:
            return None
        case TextObservation(text=str() as text, role=Role()):
            _require_text(text, most)
        case MessagesObservation(messages=tuple() | list() as messages):
            _require(0 < len(messages) <= _MOST_MESSAGES, f"{len(messages)} messages; expected 1 to {_MOST_MESSAGES}")
            for message in messages:
                is_one = isinstance(message, Message) and isinstance(message.content, str)
                _require(is_one and isinstance(message.role, Role), f"{_shown(message)} among its messages")
            _require_text("".join(message.content for message in messages), most)
        case TokensObservation(token_ids=tuple() | list() as ids, role=Role()):
            _require(len(ids) <= most_tokens, f"{len(ids)} token ids; expected up to {most_tokens}")
            for token in ids:
                is_one = isinstance(token, int) and not isinstance(token, bool) and 0 <= token < vocab_size
                _require(is_one, f"the token id {_shown(token)}; expected 0 to {vocab_size - 1}")
        case _:
            _require(False, f"{_shown(answer)}; expected a TextObservation, MessagesObservation or TokensObservation")
    return answer  # type: ignore[return-value]  # one of the three, of the right types


def checked_step(answer: object, most_tokens: int, vocab_size: int) -> Step:
    """A step of the right types, with finite numbers.

    Raises:
        InvalidInputError: as above.
    """
    if not isinstance(answer, Step):
        raise InvalidInputError(f"step answered {_shown(answer)}; expected a Step")
    if not isinstance(answer.is_done, bool):
        raise InvalidInputError(f"step.is_done is {_shown(answer.is_done)}; expected True or False")
    reward = None if answer.reward is None else _number("step.reward", answer.reward)
    if not isinstance(answer.parts, Mapping) or len(answer.parts) > MOST_PARTS:
        raise InvalidInputError(f"step.parts is {_shown(answer.parts)}; expected up to {MOST_PARTS} numbers by name")
    parts: dict[str, float] = {}
    for name, value in answer.parts.items():
        if not isinstance(name, str) or not 0 < len(name) <= LONGEST_NAME:
            raise InvalidInputError(f"step.parts has the name {_shown(name)}; expected 1 to {LONGEST_NAME} characters")
        parts[name] = _number(f"step.parts[{name!r}]", value)
    observation = checked_observation(answer.observation, most_tokens, vocab_size)
    return Step(observation, reward, answer.is_done, parts)


def _number(name: str, value: object) -> float:
    if isinstance(value, Real):
        try:
            number = float(value)
        except (OverflowError, ValueError, TypeError):
            number = math.nan
        if math.isfinite(number):
            return number
    raise InvalidInputError(f"{name} is {_shown(value)}; expected a finite number")


def _require_text(text: str, most: int) -> None:
    _require(
        len(text) <= most,
        f"{len(text)} characters; expected up to {most}: cut it, saying so in the text, or raise "
        "environments.observation_tokens",
    )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        _require(False, f"a text with half a character at {error.start}, {text[error.start]!r}; expected Unicode")


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise InvalidInputError(f"the observation is {what}")


def _shown(value: Any) -> str:
    """What it is, for a message."""
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return f"{value:#x}"[:80] if abs(value) >> 64 else str(value)
    if isinstance(value, str | bytes):
        return repr(value[:80])
    return f"a {type(value).__name__}"
