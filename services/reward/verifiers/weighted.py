"""One verdict from the verifiers that the reference names: a weighted sum, as `composite` without settings."""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from services.reward.verifiers import parts
from services.reward.verifiers.base import CORRECT, AsyncVerifier, Item, Parts, Verdict
from shared.errors import InvalidInputError
from shared.names import nearest
from shared.values import number, shown

_MAX_VERIFIERS = 16
_KEYS = ("verifier", "weight", "reference", "name")


class _Part(NamedTuple):
    name: str
    verifier: str
    weight: float
    reference: Mapping[str, Any]


class WeightedVerifier(AsyncVerifier):
    """Reference: {"verifiers": [{"verifier": "math", "weight": 1, "reference": {"answer": "5"}}, {...}]}.

    The reward is the sum of `weight` (default 1) times the reward of each. `correct` is that of the first. The values
    of a part are kept as "<name>.reward" and "<name>.<value>"; its `name` is by default that of its verifier, with a
    number where that stands there twice. Where one has no verdict, the whole has none.
    """

    name: ClassVar[str] = "weighted"
    version: ClassVar[str] = "1"
    description: ClassVar[str] = "a weighted sum of the verifiers that the reference names"
    reference_key: ClassVar[str] = "verifiers"
    reference_schema: ClassVar[Mapping[str, Any]] = {
        "type": "object",
        "required": ["verifiers"],
        "additionalProperties": False,
        "properties": {
            "verifiers": {
                "type": "array",
                "minItems": 1,
                "maxItems": _MAX_VERIFIERS,
                "items": {
                    "type": "object",
                    "required": ["verifier"],
                    "additionalProperties": False,
                    "properties": {
                        "verifier": {"type": "string"},
                        "weight": {"type": "number"},
                        "reference": {"description": "that of the verifier; one value stands for its one key"},
                        "name": {"type": "string"},
                    },
                },
            }
        },
    }
    part_names: ClassVar[Mapping[str, str]] = {"correct": CORRECT, "valid": "1 where all parts are valid"}

    async def verify(self, item: Item, others: Parts) -> Verdict:
        read = _read(item.reference, others)
        verdicts = await parts.judge({p.name: (p.verifier, item._replace(reference=p.reference)) for p in read}, others)
        total = sum(part.weight * verdicts[part.name].reward for part in read)
        return Verdict(total, parts.kept(verdicts, correct=read[0].name))


def _read(reference: Mapping[str, Any], others: Parts) -> list[_Part]:
    """Raises InvalidInputError, naming the place."""
    entries = reference.get("verifiers")
    if not isinstance(entries, list) or not 0 < len(entries) <= _MAX_VERIFIERS:
        raise InvalidInputError(
            f"reference of weighted has verifiers = {shown(entries)}; expected a list of 1 to {_MAX_VERIFIERS} objects "
            "with verifier, weight and reference"
        )
    if more := reference.keys() - {"verifiers"}:
        raise InvalidInputError(f"reference of weighted has {', '.join(sorted(more))} beside verifiers; take it out")
    read: list[_Part] = []
    for place, entry in enumerate(entries):
        part = _part(entry, f"verifiers[{place}]", others, {part.name for part in read})
        read.append(part)
    return read


def _part(entry: Any, where: str, others: Parts, taken: set[str]) -> _Part:
    where = f"reference of weighted: {where}"
    if not isinstance(entry, Mapping):
        raise InvalidInputError(f"{where} is {shown(entry)}; expected an object with {', '.join(_KEYS)}")
    for key in entry:
        if key not in _KEYS:
            raise InvalidInputError(f"{where} has {key!r}; did you mean {nearest(key, _KEYS)!r}?")
    verifier, name = entry.get("verifier"), entry.get("name")
    if not isinstance(verifier, str) or verifier not in others.verifiers:
        meant = (
            f"did you mean {nearest(verifier, others.verifiers)!r}?" if isinstance(verifier, str) else "expected a name"
        )
        raise InvalidInputError(f"{where}.verifier is {shown(verifier)}; {meant}")
    weight = number(entry.get("weight", 1))
    if weight is None or isinstance(entry.get("weight"), bool):
        raise InvalidInputError(f"{where}.weight is {shown(entry['weight'])}; expected a finite number")
    if name is None:
        same = sum(1 for other in taken if other == verifier or other.startswith(f"{verifier}_"))
        name = f"{verifier}_{same + 1}" if same else verifier
    if not isinstance(name, str) or not name or name in taken:
        raise InvalidInputError(f"{where}.name is {shown(name)}; expected a text that no other part has")
    inner, key = entry.get("reference", {}), others.verifiers[verifier].reference_key
    if not isinstance(inner, Mapping):
        if not key:
            raise InvalidInputError(f"{where}.reference is {shown(inner)}; {verifier} expects an object")
        inner = {key: inner}
    return _Part(name, verifier, weight, inner)
