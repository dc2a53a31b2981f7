"""The ports of all services on this machine: which are taken, and what a default that is taken becomes."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from services.cli.recipe import Recipe
from shared.errors import PreconditionError, RouterShiftError
from shared.rpc.address import check_port, held_port
from shared.settings import SERVICES

KEYS = ("port", "metrics_port", "health_port")


@dataclass(frozen=True, slots=True)
class Plan:
    """What each port setting becomes."""

    free: tuple[str, ...]  # settings that want any free port
    moved: Mapping[str, int]  # defaults that are taken, and so get a free port as well; by setting

    def in_words(self, found: Mapping[str, int]) -> str:
        """One line for the defaults that were taken; "" where there are none."""
        if not self.moved:
            return ""
        changes = ", ".join(f"{setting} {port} -> {found[setting]}" for setting, port in self.moved.items())
        return f"default ports that are taken were replaced by free ones: {changes}"


def plan(recipe: Recipe) -> Plan:
    """Looks at every port setting.

    Raises:
        PreconditionError: ports that were given explicitly and are taken, or given twice; names all of them.
    """
    free: list[str] = []
    moved: dict[str, int] = {}
    refused: list[str] = []
    given: dict[tuple[str, int], str] = {}
    settings = [(service, key) for service in SERVICES for key in KEYS]
    # Explicit ports first: a default that is one of them gives way.
    for service, key in sorted(settings, key=lambda at: at[1] not in recipe.server(at[0]).model_fields_set):
        server, setting = recipe.server(service), f"{service}.{key}"
        port: int | None = getattr(server, key)
        if port is None:
            continue
        if port == 0:
            free.append(setting)
            continue
        explicit = key in server.model_fields_set
        problem = _problem(server.host, port, setting)
        if other := given.get((server.host, port)):
            problem = f"{setting} = {port} is also {other}; set one of them to 0 for a free one"
        if not problem:
            given[server.host, port] = setting
        elif explicit:
            refused.append(problem)
        else:
            moved[setting] = port
    if refused:
        raise PreconditionError("; ".join(refused))
    return Plan((*free, *moved), moved)


@contextlib.contextmanager
def reserved(recipe: Recipe, wanted: Plan) -> Iterator[dict[str, int]]:
    """A free port for every setting that wants one, by the setting's name.

    They are held for as long as the block lasts, for services to listen there, also after a restart.
    """
    with contextlib.ExitStack() as held:
        ports = {}
        for setting in wanted.free:
            host = recipe.server(setting.partition(".")[0]).host
            ports[setting] = held.enter_context(held_port(host, setting))
        yield ports


def _problem(host: str, port: int, setting: str) -> str:
    try:
        check_port(host, port, setting)
    except RouterShiftError as error:
        return str(error)
    return ""
