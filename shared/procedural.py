"""The procedural tasks of reasoning-gym: which can be used, and how one is made."""

import difflib
from collections.abc import Mapping
from typing import Any

from shared.errors import InvalidInputError, MissingDependencyError, NotFoundError

_LONGEST_REASON = 300  # characters of what the library says
_EVALUATES = "its scorer evaluates answers, or what the row says, as Python"
# Read in reasoning-gym 0.1.25; a test looks at what each scorer really does.
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            "binary_matrix", "bitwise_arithmetic", "countdown", "intermediate_integration", "n_queens",
            "number_sorting", "polynomial_multiplication", "puzzle24", "simple_integration", "spiral_matrix",
            "string_insertion",
        ),
        _EVALUATES,
    ),
    "composite": "it is made of others: give each a source of its own",
}  # fmt: skip


def check(name: str) -> None:
    """Looks for a task.

    Raises:
        MissingDependencyError: reasoning-gym is not installed.
        NotFoundError: it has no such task; names the nearest.
        InvalidInputError: the task is refused; says why.
    """
    try:
        import reasoning_gym  # noqa: F401  # fills the registry
        from reasoning_gym.factory import DATASETS
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"reasoning_gym needs the package {error.name}: pip install 'routershift[reasoning-gym]'"
        ) from None
    if name in REFUSED:
        raise InvalidInputError(f"the task is refused: {REFUSED[name]}")
    if name not in DATASETS:
        usable = [known for known in DATASETS if known not in REFUSED]
        near = difflib.get_close_matches(name, usable, n=1, cutoff=0.0)[0]
        raise NotFoundError(f"no such task; did you mean {near!r}?")


def create(name: str, config: Mapping[str, Any]) -> Any:
    """A task: a sequence of entries {"question", "answer", "metadata"}, and the scorer of their answers.

    Args:
        config: keys of the task's own configuration, `seed` and `size` among them.

    Raises:
        MissingDependencyError, NotFoundError, InvalidInputError: as `check`, or a configuration that it does not take.
    """
    check(name)
    import reasoning_gym

    try:
        return reasoning_gym.create_dataset(name, **config)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(f"the task needs the package {error.name}; install it") from None
    except Exception as error:  # configurations assert, and raise what they like
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST_REASON]
        raise InvalidInputError(f"{reason}; change config") from None
