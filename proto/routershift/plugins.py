"""Plug-ins: what installed packages add to a registry through entry points."""

from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import TypeGuard, TypeVar

from routershift.errors import PreconditionError

T = TypeVar("T")


def with_plugins(
    group: str, built_in: Mapping[str, T], accepts: Callable[[object], TypeGuard[T]], expected: str
) -> dict[str, T]:
    """A registry: what is built in, and what installed packages have as entry points of `group`, by name.

    Args:
        group: such as "routershift.verifiers"; a package's pyproject.toml has
            `[project.entry-points."routershift.verifiers"]` with lines `name = "module:object"`.
        accepts: whether a loaded object is one of this kind.
        expected: what it should be, for the message.

    Raises:
        PreconditionError: an entry point that does not load, is not what is expected, or has a name that is taken.
    """
    known = dict(built_in)
    for entry in entry_points(group=group):
        where = f"entry point {entry.name} = {entry.value} of {entry.dist.name if entry.dist else 'a package'}"
        if entry.name in known:
            raise PreconditionError(f"{where}: the name {entry.name!r} is taken in {group}; rename or uninstall it")
        try:
            loaded: object = entry.load()
        except Exception as error:  # whatever the package raises when it is imported
            raise PreconditionError(f"{where}: {type(error).__name__}: {error}; fix or uninstall it") from error
        if not accepts(loaded):
            raise PreconditionError(f"{where} is no {expected}; fix or uninstall it")
        known[entry.name] = loaded
    return known
