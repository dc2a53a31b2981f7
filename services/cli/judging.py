"""Whether the verifiers of a recipe can read the references of its data, by the JSON Schemas that they publish."""

from collections.abc import Mapping
from typing import Any

from services.cli.recipe import Recipe
from services.curriculum.data.usable import Judge
from services.reward.verifiers.registry import make_verifiers, unknown_in_words
from shared.errors import NotFoundError


def make_judge(recipe: Recipe) -> Judge:
    """A function that says why a verifier, by its name, cannot read a reference; None where it can.

    It raises NotFoundError where no verifier has that name.
    Without the package jsonschema, which the reward service brings, only the names of verifiers are checked.
    """
    verifiers = make_verifiers(recipe.reward.verifiers)
    checks: dict[str, Any] = {}

    def judge(name: str, reference: Mapping[str, Any]) -> str | None:
        if name not in verifiers:
            raise NotFoundError(unknown_in_words(name, verifiers))
        if name not in checks:
            checks[name] = _validator(verifiers[name].reference_schema)
        if checks[name] is None or checks[name].is_valid(reference):
            return None
        return _in_words(checks[name], reference)

    return judge


def _in_words(validator: Any, reference: Mapping[str, Any]) -> str:
    """What is wrong with a reference, with the types that a value may have, and what makes text of a number."""
    from jsonschema.exceptions import best_match

    fault = best_match(validator.iter_errors(reference))
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
