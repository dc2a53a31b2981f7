"""What settings tables are built of. The tables themselves stand beside the code that they configure."""

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict

# A list of texts, which environment and flags write as one,two.
Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: [text for text in value.split(",") if text] if isinstance(value, str) else value),
]


class Table(BaseModel):
    """Base of every settings table: unknown keys are errors, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
