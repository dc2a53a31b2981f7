"""Conversations go to a service as callers have them: tables, and objects of the libraries that callers use."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pydantic import BaseModel

from routershift.client.requests import generate_request, score_request
from routershift.errors import InvalidInputError

ROLES, TEXTS = ["system", "user", "assistant"], ["Be short.", "3,7,5:26=", "3*7+5"]
TABLES: list[dict[str, Any]] = [{"role": role, "content": text} for role, text in zip(ROLES, TEXTS, strict=True)]


class Typed(BaseModel):
    """As openai's messages are: with fields for what others have."""

    role: str
    content: str
    refusal: str | None = None
    tool_calls: list[Any] | None = None


@dataclass
class Plain:
    role: str
    content: str


CONVERSATIONS: dict[str, Any] = {
    "tables": TABLES,
    "a tuple": tuple(TABLES),
    "keys that are None": [table | {"name": None} for table in TABLES],
    "pydantic": [Typed(**table) for table in TABLES],
    "dataclasses": [Plain(**table) for table in TABLES],
    "a cell of pandas.read_parquet": np.array(TABLES, dtype=object),
    "a column of pandas": pd.Series(TABLES, index=[7, 8, 9]),
    "rows of pandas": [row for _, row in pd.DataFrame(TABLES).iterrows()],
    "a column of pyarrow": pa.array(TABLES),
    "a chunked column of pyarrow": pa.chunked_array([TABLES[:1], TABLES[1:]]),
    "a cell of pyarrow": pa.array([TABLES])[0],
    "scalars of pyarrow": list(pa.array(TABLES)),
}


@pytest.mark.parametrize("given", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_a_conversation_is_taken_as_it_is(given: Any) -> None:
    asked = generate_request(given, False, {}).chat.messages
    assert [(message.role, message.content) for message in asked] == list(zip(ROLES, TEXTS, strict=True))
    (item,) = score_request("countdown", "3,7,5:26=", [given], {}).items
    assert (item.response, list(item.messages)) == (TEXTS[-1], list(asked))


@pytest.mark.parametrize(
    "ids", [[5, 3], (5, 3), np.array([5, 3]), torch.tensor([5, 3]), pd.Series([5, 3], index=[8, 9]), pa.array([5, 3])]
)
def test_token_ids_are_taken_as_they_are(ids: Any) -> None:
    request = generate_request(ids, False, {})
    assert list(request.token_ids.ids) == [5, 3]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([{"role": "user", "content": 5}], "bad argument type for built-in operation|expected"),
        ([{"role": "user", "text": "a"}], "text"),
        ([["user", "a"]], "a message is of type list"),
        ([object()], "a message is of type object"),
        (["a", "b"], "expected text, token ids or messages of role and content"),
        (7, "expected text, token ids or messages of role and content"),
    ],
)
def test_what_is_none_is_refused_with_what_is_expected(given: Any, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as refused:
        generate_request(given, False, {})
    assert str(refused.value).startswith(f"prompt of type {type(given).__name__}: ")
    assert "\n" not in str(refused.value)
