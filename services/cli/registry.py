"""The commands by name: the modules of `services.cli.commands`, and those that installed packages add.

A command is a module. `routershift --help` shows the first line of its docstring, without importing it: so the list
stays quick whatever a command needs. Another package adds one through the entry point group `routershift.commands`:

    [project.entry-points."routershift.commands"]
    greet = "my_package.greet"
"""

import argparse
import ast
import importlib
import importlib.util
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, cast

from services.cli import commands
from shared.errors import PreconditionError

GROUP = "routershift.commands"


class Command(Protocol):
    """What a module of a command has; its name is the command's."""

    @property
    def add_arguments(self) -> Callable[[argparse.ArgumentParser], None]:
        """Adds the options and arguments of the command to its parser."""
        ...

    @property
    def run(self) -> Callable[[argparse.Namespace], int]:
        """Runs the command; gives the exit code. A RouterShiftError becomes one line on stderr and its exit code."""
        ...


@dataclass(frozen=True, slots=True)
class Entry:
    """A command that is not imported yet."""

    name: str
    module: str
    where: str  # who provides it, for messages

    @property
    def help(self) -> str:
        """The first line of the module's docstring, or why there is none."""
        try:
            spec = importlib.util.find_spec(self.module)  # imports the package that it is in, and no more
            source = spec.loader.get_source(self.module) if spec else None  # type: ignore[union-attr]  # files have it
            docstring = ast.get_docstring(ast.parse(source or "")) or "no description"
        except Exception as error:  # whatever a package raises when it is imported
            return f"cannot be loaded: {type(error).__name__}: {error}"
        return docstring.partition("\n")[0]

    def load(self) -> Command:
        """Imports it.

        Raises:
            PreconditionError: the module of another package does not load, or is no command.
        """
        try:
            module = importlib.import_module(self.module)
        except Exception as error:
            if self.module.startswith(f"{commands.__name__}."):
                raise
            raise PreconditionError(f"{self.where}: {type(error).__name__}: {error}; fix or uninstall it") from error
        for function in ("add_arguments", "run"):
            if not callable(getattr(module, function, None)):
                raise PreconditionError(f"{self.where} has no function {function}; see {__name__}.Command")
        return cast(Command, module)


def known() -> dict[str, Entry]:
    """All commands by name, sorted.

    Raises:
        PreconditionError: an entry point with a name that is taken.
    """
    found = {
        module.name: Entry(module.name, f"{commands.__name__}.{module.name}", "RouterShift")
        for module in pkgutil.iter_modules(commands.__path__)
    }
    for point in entry_points(group=GROUP):
        where = _where(point)
        if point.name in found:
            raise PreconditionError(f"{where}: the name {point.name!r} is taken in {GROUP}; rename or uninstall it")
        found[point.name] = Entry(point.name, point.value, where)
    return dict(sorted(found.items()))


def _where(point: EntryPoint) -> str:
    return f"entry point {point.name} = {point.value} of {point.dist.name if point.dist else 'a package'}"
