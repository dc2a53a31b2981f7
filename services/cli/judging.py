"""Whether verifiers and environments can use the references of a recipe's data, by the JSON Schemas they publish."""

from collections.abc import Mapping
from typing import Any

from services.cli.recipe import Recipe
from services.curriculum.data.usable import Judge
from services.environments.registry import Configured, find, make_environments
from services.reward.verifiers.registry import make_verifiers, unknown_in_words
from shared.errors import InvalidInputError, NotFoundError


def make_judge(recipe: Recipe) -> Judge:
    """A function that says why a reference cannot be used, by verifiers and environments of the recipe.

    Without the package jsonschema, which the reward service brings, only their names are checked.
    """
    verifiers = make_verifiers(recipe.reward.verifiers)
    environments = make_environments(recipe.environments.named)
    checks: dict[tuple[str, str], Any] = {}

    def fault(kind: str, name: str, schema: Mapping[str, Any], reference: Mapping[str, Any]) -> str | None:
        if (kind, name) not in checks:
            checks[kind, name] = _validator(schema)
        check = checks[kind, name]
        return None if check is None or check.is_valid(reference) else _in_words(check, reference)

    def judge(verifier: str, reference: Mapping[str, Any], environment: str = "", /) -> str | None:
        if environment:
            check_environment(environment, verifier, environments)
        if verifier and verifier not in verifiers:
            raise NotFoundError(unknown_in_words(verifier, verifiers))
        found = fault("verifier", verifier, verifiers[verifier].reference_schema, reference) if verifier else None
        if found is None and environment:
            found = fault("environment", environment, environments[environment].kind.task_schema, reference)
        return found

    return judge


def check_environment(name: str, verifier: str, known: Mapping[str, Configured]) -> None:
    """Whether episodes of this environment can be played and judged.

    Raises:
        NotFoundError: there is none of that name.
        InvalidInputError: it does not reward, and no verifier is named.
    """
    if not find(known, name).kind.rewards and not verifier:
        raise InvalidInputError(
            f"environment {name} rewards no episodes, and no verifier is named; set it, as verifier = 'math'"
        )


def _in_words(validator: Any, reference: Mapping[str, Any]) -> str:
    """What is wrong with a reference, with the types that a value may have, and what makes text of a number."""
    from jsonschema.exceptions import best_match

    fault = best_match(validator.iter_errors(reference))
    if fault.validator == "required":
        missing = next(name for name in fault.validator_value if name not in fault.instance)
        where = fault.json_path.removeprefix("$").removeprefix(".")
        fix = "" if where else f"; name the column that has it in columns.{missing}"
        return f"{where or 'it'} has no {missing!r}{fix}"
    field, value = fault.json_path.removeprefix("$."), fault.instance
    if any(inner.validator != "type" for inner in fault.context or [fault]):
        return f"{field}: {fault.message[:200]}"
    schemas = fault.validator_value if fault.validator == "anyOf" else [fault.schema]
    types = [str(schema["type"]) for schema in schemas]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    can_be_text = "string" in types and is_number and field.isidentifier()
    fix = f'; columns.{field} = "{{{{ COLUMN | string }}}}" makes text of it' if can_be_text else ""
    return f"{field} is {str(value)[:200]}; expected {' or '.join(types)}{fix}"


def _validator(schema: Mapping[str, Any]) -> Any:
    try:
        import jsonschema
    except ModuleNotFoundError:
        return None
    return jsonschema.Draft202012Validator(dict(schema))
