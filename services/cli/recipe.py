"""A whole recipe: the tables of every service at once, for the commands that need to know all of them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from services.cli.local.supervisor import SupervisorSettings
from services.curriculum.settings import Settings as CurriculumTables
from services.generation.settings import Settings as GenerationTables
from services.learner.settings import Settings as LearnerTables
from services.reward.settings import Settings as RewardTables
from shared.errors import InvalidInputError, NotFoundError
from shared.rpc.address import check_port, held_port
from shared.settings import SERVICES, ServerSettings
from shared.trajectory import RouterExport


class Recipe(CurriculumTables, GenerationTables, LearnerTables, RewardTables):
    """All tables. Its order of strength and its errors are those of `shared.settings.load`."""

    supervisor: SupervisorSettings = SupervisorSettings()

    def server(self, service: str) -> ServerSettings:
        """The table of a service."""
        servers: dict[str, ServerSettings] = {name: getattr(self, name) for name in SERVICES}
        return servers[service]


def preflight(recipe: Recipe) -> None:
    """What can be known to fail before anything is started.

    Raises:
        NotFoundError: the model folder is missing.
        InvalidInputError: generation exports less than the learner needs.
        PreconditionError: a port is taken; names the setting.
    """
    recipe.run.require_model()
    export = recipe.generation.router_export
    if recipe.learner.uses_traces and export not in (RouterExport.TOPK, RouterExport.FULL):
        raise InvalidInputError(
            f"generation.router_export is {str(export)!r}; learner.algorithm {recipe.learner.algorithm!r} needs router "
            "scores with every token: set topk"
        )
    for service in SERVICES:
        server = recipe.server(service)
        for key in ("port", "metrics_port"):
            check_port(server.host, getattr(server, key), f"{service}.{key}")


@contextlib.contextmanager
def free_ports(recipe: Recipe) -> Iterator[dict[str, int]]:
    """A free port for every setting that asks for one with 0, by the setting's name.

    They are held for as long as the block lasts, for services to listen there, also after a restart.
    """
    with contextlib.ExitStack() as held:
        ports = {}
        for service in SERVICES:
            server = recipe.server(service)
            for key in ("port", "metrics_port"):
                if getattr(server, key) == 0:
                    name = f"{service}.{key}"
                    ports[name] = held.enter_context(held_port(server.host, name))
        yield ports


def run_folder(name: str) -> Path:
    """The folder of a run by its path, or by its id below runs/. Raises NotFoundError."""
    for folder in (Path(name), Path("runs") / name):
        if folder.is_dir():
            return folder
    raise NotFoundError(f"run {name!r} has no folder here or below runs/; give the path of its folder")
