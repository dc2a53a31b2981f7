"""The ports of all services on this machine: which are taken, and what a default that is taken becomes."""

import contextlib
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from services.cli.recipe import Recipe
from shared.errors import PortTakenError, PreconditionError, RouterShiftError
from shared.rpc.address import check_port, held_port

_TRIES = 10  # at ports that another start takes meanwhile
KEYS = ("port", "metrics_port", "health_port")


@dataclass(frozen=True, slots=True)
class Plan:
    """What each port setting becomes."""

    kept: Mapping[str, int]  # settings that keep their value
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
    settings = [(service, key) for service in recipe.services for key in KEYS]
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
    return Plan({setting: port for (_, port), setting in given.items()}, (*free, *moved), moved)


@contextlib.contextmanager
def settled(recipe: Recipe) -> Iterator[tuple[Plan, dict[str, int]]]:
    """The plan, and a free port for every setting that wants one, as `reserved` holds them.

    Starts at the same moment, whose services do not listen yet, get different ports as well.

    Raises:
        PreconditionError: as `plan`.
    """
    for attempt in range(_TRIES):
        wanted = plan(recipe)
        with contextlib.ExitStack() as held:
            try:
                found = held.enter_context(reserved(recipe, wanted))
            except PortTakenError:  # since we looked
                if attempt + 1 == _TRIES:
                    raise
                continue
            yield wanted, found
            return


@contextlib.contextmanager
def reserved(recipe: Recipe, wanted: Plan) -> Iterator[dict[str, int]]:
    """A free port for every setting that wants one, by the setting's name.

    All ports are held for as long as the block lasts, for services to listen there, also after a restart.

    Raises:
        PreconditionError: one that keeps its value is held by another start.
    """
    with contextlib.ExitStack() as held:
        for setting, port in wanted.kept.items():
            held.enter_context(_claimed(recipe.server(setting.partition(".")[0]).host, port, setting))
        ports = {}
        for setting in wanted.free:
            host = recipe.server(setting.partition(".")[0]).host
            ports[setting] = held.enter_context(held_port(host, setting))
        yield ports


@contextlib.contextmanager
def _claimed(host: str, port: int, setting: str) -> Iterator[None]:
    """Claims a port among all starts on this machine, before anybody listens there.

    A bound port cannot tell: services must be able to listen on it. An abstract name can; it lives in the network's
    namespace, as ports do, and the kernel frees it with its process.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
        try:
            claim.bind(_name(host, port))
        except OSError:
            raise PortTakenError(_held(host, port, setting)) from None
        yield


def _is_claimed(host: str, port: int) -> bool:
    """Whether a start holds it. Looking claims nothing, so that nobody who looks is in another's way."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as looker:
        try:
            looker.connect(_name(host, port))
        except OSError:
            return False
        return True


def _name(host: str, port: int) -> str:
    return f"\0routershift-port-{host}-{port}"


def _held(host: str, port: int, setting: str) -> str:
    return (
        f"{setting} = {port} on {host} is held by another run or up on this machine; set {setting} = 0 for a free one"
    )


def _problem(host: str, port: int, setting: str) -> str:
    if _is_claimed(host, port):
        return _held(host, port, setting)
    try:
        check_port(host, port, setting)
    except RouterShiftError as error:
        return str(error)
    return ""
