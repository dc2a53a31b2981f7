"""What all bodies of requests have in common: they are strict, and what is wrong with one is told by its field."""

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from services.environments.gateway.errors import of_validation


class Body(BaseModel):
    """A field that is not known, of another type, or not finite is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


BodyT = TypeVar("BodyT", bound=Body)


def read_body(kind: type[BodyT], body: bytes) -> BodyT:
    """Raises ApiError."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise of_validation(error) from None
