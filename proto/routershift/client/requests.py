"""What callers ask for, as Python has it, and the messages that carry it."""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import numpy as np
from google.protobuf.struct_pb2 import Struct
from numpy.typing import NDArray

from routershift import wire
from routershift.errors import InvalidInputError
from routershift.trajectory import Completion, Role, Trajectory
from routershift.v1 import generation_pb2 as gen
from routershift.v1 import reward_pb2 as rew
from routershift.v1 import trajectory_pb2 as pb


class Sampling(TypedDict, total=False):
    """The fields of SamplingParams."""

    n: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    max_tokens: int
    stop: str | Sequence[str]
    stop_token_ids: Sequence[int]
    seed: int
    logprobs: int


class Message(TypedDict):
    """One message of a conversation."""

    role: str
    content: str


# Text, token ids, or a conversation for the model's chat template.
Prompt = str | Sequence[int] | NDArray[np.integer[Any]] | Sequence[Message]


def generate_request(prompt: Prompt, return_router: bool, sampling: Sampling) -> gen.GenerateRequest:
    """Raises InvalidInputError for a prompt of another type, or a parameter that is not known or of another type."""
    if isinstance(stop := sampling.get("stop"), str):
        sampling = {**sampling, "stop": [stop]}  # a string is a sequence too, of its characters
    try:
        parameters = pb.SamplingParams(**sampling)
    except (TypeError, ValueError) as error:
        known = ", ".join(field.name for field in pb.SamplingParams.DESCRIPTOR.fields)
        raise InvalidInputError(f"sampling {sampling}: {error}; the parameters are {known}") from None
    request = gen.GenerateRequest(sampling=parameters, return_router=return_router)
    try:
        _fill(request, prompt)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"prompt of type {type(prompt).__name__}: {error}; expected text, token ids or messages of role and content"
        ) from None
    return request


# Text, a completion, whose special tokens go along, or all that followed a prompt, as a trajectory or as messages: what
# the model said last is judged as the response.
Response = str | Completion | Trajectory | Sequence[Message]


def score_request(
    verifier: str, prompt: str, responses: Sequence[Response], reference: Mapping[str, Any]
) -> rew.ScoreRequest:
    """Raises InvalidInputError for a reference that JSON does not have, or a response of another form."""
    try:
        struct = wire.encode_struct(reference)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"reference is {str(reference)[:200]}; expected JSON values ({error})") from None
    return rew.ScoreRequest(verifier=verifier, items=[_item(prompt, response, struct) for response in responses])


def _item(prompt: str, response: Response, reference: Struct) -> rew.ScoreItem:
    if isinstance(response, str):
        return rew.ScoreItem(prompt=prompt, response=response, reference=reference)
    if isinstance(response, Trajectory):
        item = _item(prompt, response.completion, reference)
        item.messages.extend(gen.ChatMessage(role=s.role.value, content=s.text) for s in response.segments)
        return item
    if not isinstance(response, Completion):
        try:
            messages = _messages(_listed(response))
        except (TypeError, ValueError) as error:
            raise InvalidInputError(
                f"response of type {type(response).__name__}: {error}; expected text, a completion or messages of role "
                "and content"
            ) from None
        said = [message.content for message in messages if message.role == Role.ASSISTANT]
        if not said:
            raise InvalidInputError(f"response has {len(messages)} messages and none of the role assistant; give one")
        return rew.ScoreItem(prompt=prompt, response=said[-1], reference=reference, messages=messages)
    return rew.ScoreItem(
        prompt=prompt,
        response=response.text,
        reference=reference,
        special_tokens=wire.encode_special_tokens(response.special_tokens),
    )


def _fill(request: gen.GenerateRequest, prompt: Any) -> None:
    if isinstance(prompt, str):
        request.text = prompt
        return
    parts = _listed(prompt)
    if parts and not isinstance(parts[0], numbers.Number | str):
        request.chat.messages.extend(_messages(parts))
    else:
        request.token_ids.ids.extend(parts)


def _listed(value: Any) -> list[Any]:
    """A sequence of Python, or an array, column or row of numpy, pandas, pyarrow or torch, as a list."""
    for name in ("tolist", "as_py"):
        if callable(convert := getattr(value, name, None)):
            value = convert()
    return list(value)


def _messages(values: list[Any]) -> list[gen.ChatMessage]:
    """Raises TypeError or ValueError for what is no message of role and content."""
    return [gen.ChatMessage(**_as_mapping(value)) for value in values]


def _as_mapping(message: Any) -> dict[str, Any]:
    """A table, or an object that gives its fields as one: of pydantic, as openai's messages are, pyarrow or pandas.

    Such objects, and tables with a column for each key of any message, hold None for what a message does not have.
    """
    for name in ("model_dump", "as_py", "to_dict"):
        if callable(convert := getattr(message, name, None)):
            message = convert()
    if dataclasses.is_dataclass(message) and not isinstance(message, type):
        message = dataclasses.asdict(message)
    if not isinstance(message, Mapping):
        raise TypeError(f"a message is of type {type(message).__name__}")
    return {key: value for key, value in message.items() if value is not None}
