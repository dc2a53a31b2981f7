"""Whether the verifiers of a recipe can read the references of its data, by the JSON Schemas that they publish."""

from collections.abc import Mapping
from typing import Any

from services.cli.recipe import Recipe
from services.curriculum.data.loading import Judge
from services.reward.verifiers.registry import make_verifiers, unknown_in_words


def make_judge(recipe: Recipe) -> Judge:
    """A function that says why a verifier, by its name, cannot read a reference; None where it can.

    Without the package jsonschema, which the reward service brings, only the names of verifiers are checked.
    """
    verifiers = make_verifiers(recipe.reward.verifiers)
    checks: dict[str, Any] = {}

    def judge(name: str, reference: Mapping[str, Any]) -> str | None:
        if name not in verifiers:
            return unknown_in_words(name, verifiers)
        if name not in checks:
            checks[name] = _validator(verifiers[name].reference_schema)
        fault = next(iter(checks[name].iter_errors(reference)), None) if checks[name] else None
        return None if fault is None else f"{fault.json_path.removeprefix('$.')}: {fault.message[:200]}"

    return judge


def _validator(schema: Mapping[str, Any]) -> Any:
    try:
        import jsonschema
    except ModuleNotFoundError:
        return None
    return jsonschema.Draft202012Validator(dict(schema))
