"""One verdict from several verifiers: a weighted sum, behind gates."""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from services.reward.verifiers import parts
from services.reward.verifiers.base import CORRECT, AsyncVerifier, Item, Parts, Verdict, VerifierSettings
from shared.errors import InvalidInputError
from shared.table import Table


class PartSettings(Table):
    verifier: str = Field(description="name of the verifier that judges this part")
    weight: float = Field(1.0, allow_inf_nan=False, description="what its reward is multiplied with")
    gate: float | None = Field(None, description="reward of this part below which the whole reward is `closed_reward`")
    reference: str | None = Field(
        None, description="key of the reference under which this part's own reference is; default: the whole reference"
    )


class CompositeSettings(VerifierSettings):
    parts: dict[str, PartSettings] = Field(min_length=1, description="tables [reward.verifiers.NAME.parts.PART]")
    correct: str | None = Field(None, description="part whose `correct` is that of the whole; default: the first")
    closed_reward: float = Field(0.0, allow_inf_nan=False, description="the whole reward where a gate is closed")

    @model_validator(mode="after")
    def _names_a_part(self) -> Self:
        if self.correct is not None and self.correct not in self.parts:
            raise ValueError(f"correct is {self.correct!r}; expected one of the parts {', '.join(self.parts)}")
        return self


class CompositeVerifier(AsyncVerifier):
    """Reference: that of its parts. All parts judge at the same time, each by its own deadline or that of this one.

    The values of a part are kept as "<part>.reward" and "<part>.<value>"; `valid` is 1.0 where all parts are.
    Where one part has no verdict, the whole has none.
    """

    name: ClassVar[str] = "composite"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "a weighted sum of other verifiers, with gates"
    reference_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "description": "what the parts read: all of it, or where a part has a `reference`, the table of that name",
    }
    part_names: ClassVar[Mapping[str, str]] = {
        "correct": CORRECT,
        "valid": "1 where all parts are valid",
    }
    Settings: ClassVar[type[VerifierSettings]] = CompositeSettings
    settings: CompositeSettings

    async def verify(self, item: Item, others: Parts) -> Verdict:
        own, settings = self.settings.parts, self.settings
        asked = {name: (part.verifier, item._replace(reference=_own(item, name, part))) for name, part in own.items()}
        verdicts = await parts.judge(asked, others)
        values = parts.kept(verdicts, correct=settings.correct or next(iter(own)))
        closed = any(part.gate is not None and verdicts[name].reward < part.gate for name, part in own.items())
        total = sum(part.weight * verdicts[name].reward for name, part in own.items())
        return Verdict(settings.closed_reward if closed else total, values)


def _own(item: Item, name: str, part: PartSettings) -> Mapping[str, Any]:
    """The part's own reference. Raises InvalidInputError where there is none."""
    reference = item.reference if part.reference is None else item.reference.get(part.reference)
    if not isinstance(reference, Mapping):
        raise InvalidInputError(
            f"reference has no table {part.reference!r} for part {name!r}; it has {', '.join(item.reference)}"
        )
    return reference
