"""Bounds of numbers that travel as float32."""

from typing import Any

import numpy as np
import pytest

from routershift.trajectory import Completion
from routershift.v1 import generation_pb2 as gen
from routershift.v1 import trajectory_pb2 as pb
from services.generation.engines.base import EngineInfo
from services.generation.requests.validation import Requests
from shared.errors import InvalidInputError
from tests.support.models import EOS, VOCABULARY, build_tokenizer

LETTERS = {"a": "1", "b": "2"}  # of the model's vocabulary

INFO = EngineInfo("torch", "model", VOCABULARY, 256, (EOS,), None)


def _params(field: str, value: float) -> pb.SamplingParams:
    params = pb.SamplingParams()
    setattr(params, field, value)
    return params


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Requests:
    folder = tmp_path_factory.mktemp("model")
    build_tokenizer().save_pretrained(folder)
    return Requests(folder, INFO, 8)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("temperature", value) for value in (0.0, 0.01, 0.7, 2.0)),
        *(("top_p", value) for value in (1e-6, 0.9, 1.0)),
        *(("min_p", value) for value in (0.0, 0.1, 1.0)),
    ],
)
def test_a_bound_is_allowed_and_every_number_is_what_the_caller_wrote(
    requests: Requests, field: str, value: float
) -> None:
    assert getattr(requests.sampling([2], _params(field, value)), field) == value


@pytest.mark.parametrize(
    ("field", "bound", "towards"),
    [
        *(("temperature", bound, towards) for bound, towards in ((0.01, 0), (2.0, 3), (0.0, -1))),
        *(("top_p", bound, towards) for bound, towards in ((1.0, 2), (0.0, -1))),
        *(("min_p", bound, towards) for bound, towards in ((0.0, -1), (1.0, 2))),
    ],
)
def test_the_next_float32_beyond_a_bound_is_refused(
    requests: Requests, field: str, bound: float, towards: float
) -> None:
    beyond: Any = np.nextafter(np.float32(bound), np.float32(towards))
    with pytest.raises(InvalidInputError, match=rf"sampling\.{field} is {beyond!s}; allowed"):
        requests.sampling([2], _params(field, float(beyond)))


async def test_a_conversation_of_more_messages_than_the_model_has_tokens_is_refused(requests: Requests) -> None:
    chat = gen.ChatMessages(messages=[gen.ChatMessage(role="user")] * 257)
    with pytest.raises(InvalidInputError, match=r"chat\.messages is 257 long; allowed: up to 256"):
        await requests.prompt(gen.GenerateRequest(chat=chat))
    long = gen.ChatMessages(messages=[gen.ChatMessage(role="x" * 20_000)])
    with pytest.raises(InvalidInputError, match=r"chat\.messages is 20000 characters long"):
        await requests.prompt(gen.GenerateRequest(chat=long))


@pytest.mark.parametrize(
    ("tokens", "text", "special"),
    [
        ("ab", "ab", []),
        ("ab.", "ab", [(2, ".")]),
        (".a..b..", "ab", [(0, "."), (1, "."), (1, "."), (2, "."), (2, ".")]),
        ("..", "", [(0, "."), (0, ".")]),
        ("", "", []),
        (".a" * 100 + "b" + "." * 100, "a" * 100 + "b", [*((i, ".") for i in range(32)), *[(101, ".")] * 32]),
    ],
)
def test_a_response_has_its_text_and_the_special_tokens_that_this_leaves_out(
    requests: Requests, tokens: str, text: str, special: list[tuple[int, str]]
) -> None:
    """A dot stands for the end of sequence."""
    tokenizer = build_tokenizer()
    ids = [EOS if c == "." else tokenizer.convert_tokens_to_ids(LETTERS[c]) for c in tokens]
    end = str(tokenizer.convert_ids_to_tokens(EOS))
    sampled = Completion(0, np.array(ids, np.int32), np.zeros(len(ids), np.float32), (), None, None)
    told = requests.with_text(sampled)
    assert told.text == text.replace("a", LETTERS["a"]).replace("b", LETTERS["b"])
    assert told.special_tokens == tuple((place, end) for place, _ in special)
