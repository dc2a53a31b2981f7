"""What of a recipe only this machine can answer: its devices and kernels, its disk, its files of secrets.

A dry run leaves these out, because it may plan for another machine.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from routershift.client.credentials import Bearer, channel_credentials
from services.cli.dry_run import memory
from services.cli.recipe import Recipe
from services.generation.engines.vllm import limits as vllm
from services.planner.memory import of_machine
from services.planner.model import dtype_of, read
from shared.errors import PreconditionError
from shared.models.folder import read_json
from shared.rpc.access import AccessControl
from shared.rpc.credentials import require_privacy, server_credentials
from shared.sizes import in_words


def device_bytes(device: str) -> int | None:
    """Memory of a device of this machine; None where it has none. Imports torch for any but the CPU."""
    if device.partition(":")[0] == "cpu":
        return int(psutil.virtual_memory().total)
    import torch

    try:
        return int(torch.cuda.get_device_properties(device).total_memory) if torch.cuda.is_available() else None
    except (RuntimeError, ValueError, AssertionError):
        return None


def existing_folder(recipe: Recipe) -> Path:
    """The run's folder, or what there is of the way to it.

    Raises:
        PreconditionError: it is no folder, or cannot be written to.
    """
    folder = recipe.run.path.absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise PreconditionError(f"run.folder is {recipe.run.folder}, and {folder} is no folder; set another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PreconditionError(f"run.folder is {recipe.run.folder}; {folder} cannot be written to; set another")
    return folder


def _devices(recipe: Recipe) -> str:
    settings = {"learner.device": recipe.learner.device}
    if recipe.generation.engine == "torch":
        settings["generation.device"] = recipe.generation.device
    for setting, device in settings.items():
        if device_bytes(device) is None:
            raise PreconditionError(
                f"{setting} is {device!r}, which this machine does not have, or torch cannot use; set it to cpu, or "
                "install a torch for this accelerator"
            )
    return ", ".join(f"{setting} {device}" for setting, device in settings.items())


def _learner(recipe: Recipe) -> str:
    """What the learner is sure to hold of the memory of each of its devices. Reads the headers of the weights."""
    model, ranks = read(recipe.run.require_model()), recipe.learner.parallel.processes
    parts = [part for part in memory.parts(recipe, model, 0) if part.component == "learner" and not part.is_estimate]
    held = of_machine(parts, ranks)
    found = []
    for device in dict.fromkeys(part.device for part in held):
        own = [part for part in held if part.device == device]
        needed, total = sum(part.bytes for part in own), device_bytes(device)
        if total is not None and needed > total:
            largest = memory.largest(own)
            raise PreconditionError(
                f"the learner holds {in_words(needed)} in the {in_words(total)} of {device}, at least; the largest "
                f"part is {in_words(largest.bytes)} of {largest.what}: change {largest.change}"
            )
        found.append(f"{in_words(needed)} on {device}")
    return f"the learner holds at least {' and '.join(found)}"


def _optimizer(recipe: Recipe) -> str:
    config = read_json(recipe.run.require_model() / "config.json")
    recipe.learner.optimizer.check(dtype_of(config))
    return f"moments in {recipe.learner.optimizer.moments}, offload {recipe.learner.optimizer.offload}"


def _kernels(recipe: Recipe) -> str:
    """What the vLLM of this machine has kernels for: the one for CPUs has fewer."""
    chosen = recipe.generation
    if chosen.engine != "vllm":
        return f"those of {chosen.engine}"
    folder, on_cpu = recipe.run.require_model(), vllm.built_for_cpu()
    limits = chosen.max_model_len, chosen.max_num_seqs
    vllm.refuse(folder, read_json(folder / "config.json"), chosen.vllm, limits, on_cpu=on_cpu)
    return f"those of vLLM for {'CPUs' if on_cpu else 'GPUs'}"


def _access(recipe: Recipe) -> str:
    access = recipe.access
    server_tls, client_tls = server_credentials(access), channel_credentials(access)
    Bearer(access)
    for service in recipe.services:
        server = recipe.server(service)
        AccessControl(access, server)
        require_privacy(access, server.host, server_tls is not None)
    return f"{'TLS' if server_tls or client_tls else 'clear text'}, {'tokens' if access.tokens else 'no tokens'}"


# By what they look at. Each gives what it found, in words, or raises a RouterShiftError.
MACHINE_CHECKS: Mapping[str, Callable[[Recipe], str]] = {
    "folder": lambda recipe: f"{recipe.run.path}, in {existing_folder(recipe)}",
    "devices": _devices,
    "learner": _learner,
    "optimizer": _optimizer,
    "kernels": _kernels,
    "access": _access,
}
