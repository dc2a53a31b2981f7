"""All kinds of verifiers, by name, and the verifiers that a recipe makes of them."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from routershift.plugins import with_plugins
from services.reward.verifiers.base import AsyncVerifier, Verifier
from services.reward.verifiers.choice import ChoiceVerifier
from services.reward.verifiers.code.verifier import CodeVerifier
from services.reward.verifiers.composite import CompositeVerifier
from services.reward.verifiers.countdown import CountdownVerifier
from services.reward.verifiers.exact import ExactVerifier
from services.reward.verifiers.file.verifier import FileVerifier
from services.reward.verifiers.format import FormatVerifier
from services.reward.verifiers.instructions import InstructionsVerifier
from services.reward.verifiers.json_schema import JsonSchemaVerifier
from services.reward.verifiers.math.verifier import MathVerifier
from services.reward.verifiers.model import ModelVerifier
from services.reward.verifiers.reasoning_gym import ReasoningGymVerifier
from services.reward.verifiers.regex import RegexVerifier
from services.reward.verifiers.remote.verifier import RemoteVerifier
from services.reward.verifiers.weighted import WeightedVerifier
from shared.errors import InvalidInputError
from shared.kinds import chosen, errors_of, required, settings_of
from shared.names import did_you_mean, nearest

GROUP = "routershift.verifiers"  # entry points of other packages: kind = "module:class"

AnyVerifier = Verifier | AsyncVerifier

_BUILT_IN: tuple[type[AnyVerifier], ...] = (
    CountdownVerifier,
    MathVerifier,
    CodeVerifier,
    ChoiceVerifier,
    ExactVerifier,
    RegexVerifier,
    JsonSchemaVerifier,
    InstructionsVerifier,
    FormatVerifier,
    FileVerifier,
    ReasoningGymVerifier,
    ModelVerifier,
    RemoteVerifier,
    CompositeVerifier,
    WeightedVerifier,
)


def kinds() -> dict[str, type[AnyVerifier]]:
    """Every kind: those built in, and those that installed packages have as entry points.

    Raises:
        PreconditionError: an entry point that does not load, is no verifier, or has a name that is taken.
    """
    built_in = {kind.name: kind for kind in _BUILT_IN}
    return with_plugins(GROUP, built_in, _is_verifier, "subclass of Verifier or AsyncVerifier")


def make_verifiers(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, AnyVerifier]:
    """The verifiers of the tables [reward.verifiers.NAME], and of each kind that needs no settings, by name.

    A table that has a kind's own name may leave `kind` out, and so may one that names a `file`. A table replaces the
    verifier of its name that has no settings.

    Raises:
        InvalidInputError: an unknown kind or setting (names the nearest), or a value out of range.
        PreconditionError, NotFoundError: what a kind needs is not there.
    """
    known = kinds()
    plain = {name: kind for name, kind in known.items() if not required(kind.Settings)}
    made = {name: kind(kind.Settings()) for name, kind in plain.items() if name not in tables}
    for name, table in tables.items():
        made[name] = _make(known, name, table)
    _check_parts(made)
    for name in tables:
        with errors_of(f"reward.verifiers.{name}"):
            made[name].check()
    return made


def unknown_in_words(name: str, made: Iterable[str]) -> str:
    """Why no verifier has this name: a kind that needs a table of settings, or nothing known."""
    if (kind := kinds().get(name)) is not None:
        needed = ", ".join(required(kind.Settings))
        return (
            f"verifier is {name!r}, which needs a table [reward.verifiers.{name}] with {needed}: put it into the "
            f"recipe, or --set reward.verifiers.{name}.{required(kind.Settings)[0]}=...; "
            f"`routershift settings reward.verifiers.{name}` lists its keys"
        )
    known = list(made)
    return f"verifier is {name!r}; known: {', '.join(known)}{did_you_mean(name, known)}"


def _make(known: Mapping[str, type[AnyVerifier]], name: str, table: Mapping[str, Any]) -> AnyVerifier:
    where = f"reward.verifiers.{name}"
    own = name in known and ("file" not in table or "file" in known[name].Settings.model_fields)
    kind = chosen(where, known, table.get("kind", name if own or "file" not in table else FileVerifier.name))
    settings = settings_of(where, kind.Settings, table)
    with errors_of(where):
        return kind(settings)


def _is_verifier(loaded: object) -> TypeGuard[type[AnyVerifier]]:
    return isinstance(loaded, type) and issubclass(loaded, Verifier | AsyncVerifier)


def _check_parts(verifiers: Mapping[str, AnyVerifier]) -> None:
    """Composites name verifiers that there are, and none is a part of itself."""
    needs = {
        name: [part.verifier for part in verifier.settings.parts.values()]
        for name, verifier in verifiers.items()
        if isinstance(verifier, CompositeVerifier)
    }
    for name, parts in needs.items():
        for part in parts:
            if part not in verifiers:
                raise InvalidInputError(
                    f"reward.verifiers.{name} has a part with verifier = {part!r}; "
                    f"did you mean {nearest(part, verifiers)!r}?"
                )
        seen, todo = set(), list(parts)
        while todo:
            part = todo.pop()
            if part == name:
                raise InvalidInputError(f"reward.verifiers.{name} is a part of itself; a composite needs others")
            if part not in seen:
                seen.add(part)
                todo += needs.get(part, [])
