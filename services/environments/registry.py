"""All kinds of environments, by name, and the environments that a recipe makes of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from routershift.plugins import with_plugins
from services.environments.base import Environment, EnvironmentSettings
from services.environments.gateway.agent import AgentEnvironment
from services.environments.kinds.calculator import CalculatorEnvironment
from services.environments.kinds.file.environment import FileEnvironment
from services.environments.kinds.maze import MazeEnvironment
from services.environments.kinds.python import PythonEnvironment
from services.environments.kinds.remote import RemoteEnvironment
from shared.errors import NotFoundError, PreconditionError, RouterShiftError
from shared.kinds import chosen, errors_of, required, settings_of
from shared.names import did_you_mean
from shared.user_module import raised

GROUP = "routershift.environments"  # entry points of other packages: kind = "module:class"

_BUILT_IN: tuple[type[Environment], ...] = (
    CalculatorEnvironment,
    MazeEnvironment,
    PythonEnvironment,
    FileEnvironment,
    RemoteEnvironment,
    AgentEnvironment,
)


@dataclass(frozen=True, slots=True)
class Configured:
    """An environment of a recipe, which makes one for each episode."""

    name: str  # in the recipe: what prompts have in `environment`
    kind: type[Environment]
    settings: EnvironmentSettings

    def make(self) -> Environment:
        return self.kind(self.settings)


def kinds() -> dict[str, type[Environment]]:
    """Every kind: those built in, and those that installed packages have as entry points.

    Raises:
        PreconditionError: an entry point that does not load, is no environment, or has a name that is taken.
    """
    return with_plugins(GROUP, {kind.name: kind for kind in _BUILT_IN}, _is_environment, "subclass of Environment")


def make_environments(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Configured]:
    """The environments of the tables [environments.named.NAME], and of each kind that needs no settings, by name.

    A table that has a kind's own name may leave `kind` out, and so may one that names a `file`. A table replaces the
    environment of its name that has no settings.

    Raises:
        InvalidInputError: an unknown kind or setting (names the nearest), or a value out of range.
        PreconditionError, NotFoundError: what a kind needs is not there.
    """
    known = kinds()
    made = {
        name: Configured(name, kind, kind.Settings())
        for name, kind in known.items()
        if name not in tables and not required(kind.Settings)
    }
    for name, table in tables.items():
        where = f"environments.named.{name}"
        kind = chosen(where, known, table.get("kind", FileEnvironment.name if "file" in table else name))
        made[name] = Configured(name, kind, settings_of(where, kind.Settings, table))
        with errors_of(where):
            _check(made[name])
    return made


def find(environments: Mapping[str, Configured], name: str) -> Configured:
    """The environment of a name. Raises NotFoundError; names those that there are."""
    if (configured := environments.get(name)) is None:
        known = ", ".join(environments) or "none"
        raise NotFoundError(
            f"environment is {name!r}; known: {known}{did_you_mean(name, environments)}; a table "
            "[environments.named.NAME] of the recipe makes one"
        )
    return configured


def _check(configured: Configured) -> None:
    """Raises RouterShiftError: what would keep it from playing."""
    try:
        configured.make().check()
    except RouterShiftError:
        raise
    except Exception as error:  # whatever the code of a package raises
        raise PreconditionError(f"making it raises {raised(error)}") from error


def _is_environment(loaded: object) -> TypeGuard[type[Environment]]:
    return isinstance(loaded, type) and issubclass(loaded, Environment)
