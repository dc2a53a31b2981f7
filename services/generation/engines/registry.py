"""The engines by name: those built in, and those that installed packages add."""

from pathlib import Path
from typing import Protocol, TypeGuard

from routershift.plugins import with_plugins
from services.generation.engines.base import Engine, EngineOptions
from services.generation.settings import GenerationSettings, Settings
from shared.errors import NotFoundError

GROUP = "routershift.engines"  # entry points of other packages: name = "module:function"


class MakeEngine(Protocol):
    """Makes an engine, which loads nothing yet. What it needs is imported in the call: only one engine is chosen."""

    def __call__(self, model: Path, options: EngineOptions, settings: GenerationSettings) -> Engine:
        """An engine for a model folder.

        Args:
            settings: what only this engine reads is in a table of its own; an engine of another package has
                `engine_settings`.

        Raises:
            MissingDependencyError: a package that it needs is not installed.
        """
        ...


def _vllm(model: Path, options: EngineOptions, settings: GenerationSettings) -> Engine:
    from services.generation.engines.vllm.engine import VllmEngine

    return VllmEngine(model, options, settings.vllm)


def _torch(model: Path, options: EngineOptions, settings: GenerationSettings) -> Engine:
    from services.generation.engines.torch.engine import TorchEngine

    return TorchEngine(model, options, settings.device)


def engines() -> dict[str, MakeEngine]:
    """Every engine by name.

    Raises:
        PreconditionError: an entry point that does not load, cannot be called, or has a name that is taken.
    """
    return with_plugins(GROUP, {"vllm": _vllm, "torch": _torch}, _is_function, "function that makes an engine")


def make_engine(settings: Settings) -> Engine:
    """The engine that the settings name, for the run's model.

    Raises:
        NotFoundError: no such engine, or the model folder is missing.
        MissingDependencyError: a package that it needs is not installed.
        PreconditionError: an entry point that does not load.
    """
    chosen, run, known = settings.generation, settings.run, engines()
    if chosen.engine not in known:
        raise NotFoundError(
            f"generation.engine is {chosen.engine!r}; known: {', '.join(known)}. Another package adds an engine by the "
            f"entry point {GROUP}"
        )
    options = EngineOptions(
        max_model_len=chosen.max_model_len,
        max_num_seqs=chosen.max_num_seqs,
        seed=run.seed,
        threads=chosen.threads,
        router_export=chosen.router_export,
        update_policy=chosen.update_policy,
    )
    return known[chosen.engine](run.require_model(), options, chosen)


def _is_function(loaded: object) -> TypeGuard[MakeEngine]:
    return callable(loaded)
