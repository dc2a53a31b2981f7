"""The procedural data sets of reasoning-gym: which can be used, and how one is made."""

import difflib
import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from shared.errors import InvalidInputError, MissingDependencyError

PREFIX = "reasoning_gym:"  # of a source: reasoning_gym:chain_sum
_EVALUATES = "its scorer evaluates answers, or what the row says, as Python"
# Read in reasoning-gym 0.1.25; a test looks at what each scorer really does.
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "binary_matrix", "bitwise_arithmetic", "countdown", "intermediate_integration", "n_queens",
            "number_sorting", "polynomial_multiplication", "puzzle24", "simple_integration", "spiral_matrix", "string_insertion",
        ),
        _EVALUATES,
    ),
    "composite": "it is made of others; give each a source of its own",
}  # fmt: skip


def create(name: str, config: Mapping[str, Any], seed: int, size: int) -> Any:
    """A data set: a sequence of `size` entries {"question", "answer", "metadata"} that follow from the seed.

    Args:
        name: without the prefix, as chain_sum.
        config: keys of the data set's own configuration.

    Raises:
        MissingDependencyError: reasoning-gym is not installed.
        InvalidInputError: no such data set, one that is refused, or a configuration that it does not take.
    """
    return _create(name, json.dumps(dict(config), sort_keys=True), seed, size)


def check(name: str) -> None:
    """Raises as `create` does for a name."""
    known = _data_sets()
    if name in REFUSED:
        raise InvalidInputError(f"reasoning_gym's data set {name!r} is refused: {REFUSED[name]}")
    if name not in known:
        near = difflib.get_close_matches(name, [each for each in known if each not in REFUSED], n=1, cutoff=0.0)[0]
        raise InvalidInputError(f"reasoning_gym has no data set {name!r}; did you mean {near!r}?")


def _data_sets() -> Mapping[str, Any]:
    try:
        import reasoning_gym  # noqa: F401  # fills the registry
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"reasoning_gym needs the package {error.name}: pip install 'routershift[reasoning-gym]'"
        ) from None
    known: Mapping[str, Any] = DATASETS
    return known


@lru_cache(maxsize=64)
def _create(name: str, config: str, seed: int, size: int) -> Any:
    check(name)
    import reasoning_gym

    values = json.loads(config)
    for key in ("seed", "size"):
        if key in values:
            raise InvalidInputError(f"config of reasoning_gym's {name} has {key!r}, which is not for it to say")
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size, **values)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"reasoning_gym's {name} needs the package {error.name}; install it") from None
    except Exception as error:  # configurations assert, and raise what they like
        raise InvalidInputError(
            f"config of reasoning_gym's {name} is {config[:200]}: {type(error).__name__}: {str(error)[:300]}"
        ) from None
