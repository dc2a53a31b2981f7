"""A whole recipe: the tables of every service at once, for the commands that need to know all of them."""

import socket
from pathlib import Path

from services.curriculum.settings import Settings as CurriculumTables
from services.generation.settings import Settings as GenerationTables
from services.learner.settings import Settings as LearnerTables
from services.reward.settings import Settings as RewardTables
from shared.errors import InvalidInputError, NotFoundError
from shared.rpc import check_port
from shared.settings import SERVICES, Door
from shared.trajectory import RouterExport


class Recipe(CurriculumTables, GenerationTables, LearnerTables, RewardTables):
    """All tables. Its order of strength and its errors are those of `shared.settings.load`."""

    def door(self, service: str) -> Door:
        """The table of a service."""
        doors: dict[str, Door] = {name: getattr(self, name) for name in SERVICES}
        return doors[service]


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
        door = recipe.door(service)
        for key in ("port", "metrics_port"):
            check_port(door.host, getattr(door, key), f"{service}.{key}")


def free_ports(recipe: Recipe) -> dict[str, int]:
    """A free port for every setting that asks for one with 0, by the setting's name.

    All are held at the same time, so they differ; between here and the service's start another process could
    take one, which then is an ordinary taken port.
    """
    wanted = [(s, k) for s in SERVICES for k in ("port", "metrics_port") if getattr(recipe.door(s), k) == 0]
    probes = [socket.socket() for _ in wanted]
    try:
        for (service, _), probe in zip(wanted, probes, strict=True):
            probe.bind((recipe.door(service).host, 0))
        return {f"{s}.{k}": int(probe.getsockname()[1]) for (s, k), probe in zip(wanted, probes, strict=True)}
    finally:
        for probe in probes:
            probe.close()


def run_folder(name: str) -> Path:
    """The folder of a run by its path, or by its id below runs/. Raises NotFoundError."""
    for folder in (Path(name), Path("runs") / name):
        if folder.is_dir():
            return folder
    raise NotFoundError(f"run {name!r} has no folder here or below runs/; give the path of its folder")
