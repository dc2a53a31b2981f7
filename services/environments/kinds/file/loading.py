"""The environment that a Python file has."""

from pathlib import Path

from services.environments.base import Environment
from shared.errors import InvalidInputError
from shared.names import did_you_mean
from shared.user_module import load_module
from shared.values import shown

_MODULE = "routershift_environment_file"
_EXAMPLE = "define one, as class Mine(Environment)"


def load(file: Path, source: str, name: str | None) -> type[Environment]:
    """Runs the file and gives its class.

    Args:
        source: what the file holds.
        name: of the class; None: the only one that is an environment.

    Raises:
        InvalidInputError: it does not run, or has no such class; names file, line and fix.
    """
    module = load_module(_MODULE, file, source)
    own = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, Environment) and value.__module__ == _MODULE
    }
    if name is None:
        if len(own) != 1:
            has = (
                f"has {len(own)} environments, {', '.join(own)}: set class_name"
                if own
                else f"has no environment: {_EXAMPLE}"
            )
            raise InvalidInputError(f"{file} {has}")
        (kind,) = own.values()
    else:
        if name not in own:
            what = f"{shown(getattr(module, name))}, no environment" if hasattr(module, name) else "not there"
            raise InvalidInputError(f"{file}: {name} is {what}{did_you_mean(name, own)}; {_EXAMPLE}")
        kind = own[name]
    missing = sorted(kind.__abstractmethods__) + [
        key for key in ("name", "version", "description") if not isinstance(getattr(kind, key, None), str)
    ]
    if missing:
        raise InvalidInputError(f"{file}: class {kind.__name__} has no {missing[0]}; an environment has it")
    return kind
