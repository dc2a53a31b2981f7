"""Whatever stands in a recipe, the environment or a flag, the answer is settings or one line for the user."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from services.cli.recipe import Recipe
from shared.errors import InvalidInputError, NotFoundError
from shared.recipes import load, redis_of

FUZZ = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

_TABLES = {name: field.annotation for name, field in Recipe.model_fields.items()}
_KEYS = st.sampled_from([
    f"{table}.{key}" for table, kind in _TABLES.items() for key in getattr(kind, "model_fields", {})
])  # fmt: skip
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)
SECRET = "hunter2hunter2"


def attempt(recipe: Path | None, environment: dict[str, str], flags: list[str]) -> Recipe | None:
    try:
        return load(Recipe, recipe, environment, flags)
    except (InvalidInputError, NotFoundError) as error:  # the latter: a name that no plug-in has
        assert "\n" not in str(error).strip()  # noqa: PT017
        assert SECRET not in str(error)  # noqa: PT017
        return None


def toml(value: Any) -> str:
    """JSON is nearly TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return json.dumps("" if value is None else value)


@pytest.fixture(scope="module")
def sound(repository: Path) -> str:
    return (repository / "deploy/recipes/countdown.toml").read_text()


@FUZZ
@given(edits=st.lists(st.tuples(st.integers(0, 600), st.text(max_size=4), st.integers(0, 4)), max_size=6))
@example(edits=[])
@example(edits=[(0, "a = " + "[" * 5000, 0)])
def test_a_recipe_that_was_edited_anywhere(tmp_path: Path, sound: str, edits: list[tuple[int, str, int]]) -> None:
    text = sound
    for start, piece, gone in edits:
        text = text[:start] + piece + text[start + gone :]
    path = tmp_path / "recipe.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    found = attempt(path, {}, [])
    assert edits or found


@FUZZ
@given(st.binary(max_size=100))
def test_a_recipe_of_any_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(data)
    attempt(path, {}, [])


@FUZZ
@given(st.dictionaries(_KEYS, _VALUES, max_size=4))
@example({"redis.url": {"x": SECRET}})
def test_a_recipe_with_any_values(tmp_path: Path, values: dict[str, Any]) -> None:
    path = tmp_path / "recipe.toml"
    lines = [f"{key} = {toml(value)}" for key, value in {"run.model": "m", **values}.items()]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    attempt(path, {}, [])


@FUZZ
@given(st.lists(st.tuples(_KEYS, st.text(max_size=12)), max_size=4), st.lists(st.text(max_size=20), max_size=2))
def test_environment_and_flags_of_any_text(values: list[tuple[str, str]], flags: list[str]) -> None:
    environment = {f"ROUTERSHIFT_{key.upper().replace('.', '__')}": text for key, text in values}
    attempt(None, {"REDIS_URL": f"redis://:{SECRET}@host", **environment}, ["run.model=m", *flags])
    attempt(None, {}, ["run.model=m", *(f"{key}={text}" for key, text in values), *flags])


@pytest.mark.parametrize(
    "environment",
    [
        {"ROUTERSHIFT_REDIS__USERNAME": "x"},
        {"ROUTERSHIFT_REDIS__PASSWORD_FILE": "x"},
        {"ROUTERSHIFT_REDIS__AUTHORITY": "x"},
        {"ROUTERSHIFT_REDIS__TIMEOUT_SECONDS": "soon"},
    ],
)
def test_a_password_in_a_url_is_in_no_error(environment: dict[str, str]) -> None:
    url = {"REDIS_URL": f"redis://:{SECRET}@host"}
    assert attempt(None, url | environment, ["run.model=m"]) is None
    with pytest.raises(InvalidInputError) as caught:
        redis_of(url | environment)
    assert SECRET not in str(caught.value)
