"""What can be known to fail before anything is started."""

import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from routershift.routing.families import family_of, no_routers_in_words, why_refused
from routershift.trajectory import RouterExport, ScoreDtype
from services.cli import ports
from services.cli.dry_run import memory
from services.cli.evaluation_load import check_load
from services.cli.judging import check_environment, make_judge
from services.cli.local.redis import MAX_MEMORY_BYTES
from services.cli.machine import MACHINE_CHECKS
from services.cli.recipe import Recipe
from services.curriculum.data.files import find_files
from services.curriculum.data.settings import SourceSettings
from services.curriculum.data.usable import Room, check_responses
from services.environments.registry import make_environments
from services.generation.engines.torch import limits as torch
from services.generation.engines.vllm import limits as vllm
from services.generation.routes import check_layers
from services.planner.model import read
from services.reward.verifiers.registry import AnyVerifier
from shared import sizes
from shared.errors import (
    InvalidInputError,
    MissingDependencyError,
    NotFoundError,
    PreconditionError,
    RouterShiftError,
)
from shared.models.folder import read_json
from shared.models.layout import context_length, layout_of_folder, text_config
from shared.models.tensors import require_float
from shared.sources import is_file
from shared.streams.capacity import check_memory, check_step_fits, trajectory_bytes
from shared.tracing.start import check_traces
from shared.tracking.registry import make_trackers

_DATA_BYTES = 16 << 20  # of files that are read before a start; larger ones are read once, by the curriculum
# How to install the package that an engine is named after.
_INSTALL = {"vllm": "make install ENGINE=vllm, or --set generation.engine=torch", "torch": "make install"}


def preflight(recipe: Recipe) -> None:
    """Makes every check; the first that fails raises.

    Raises:
        NotFoundError: the model folder, the engine, the task, a verifier or a tracker is missing.
        InvalidInputError: settings that contradict each other or the model; a step that fits into no stream; data of
            which too many rows cannot be used.
        MissingDependencyError: the engine, or the package of a tracker, is not installed.
        CorruptDataError: a file that is broken.
        PreconditionError: a dense model for an algorithm that needs routers, or one that the engine cannot serve; ports
            that were given explicitly are taken: names all of them; a folder that takes no writes, or a device that is
            not there.
    """
    for check in (*CHECKS.values(), *MACHINE_CHECKS.values()):
        check(recipe)


def _model(recipe: Recipe) -> str:
    folder = recipe.run.require_model()
    config = read_json(folder / "config.json")
    text = text_config(config)
    kinds = trainable_types(folder, config)
    if recipe.learner.uses_traces and not any(map(family_of, kinds)):
        raise PreconditionError(f"run.model is {folder}: {no_routers_in_words(kinds[0])}")
    require_float(folder)
    length, source = longest(recipe, text)
    made_for, given = context_length(text), recipe.generation.max_model_len
    if recipe.generation.engine == "vllm" and made_for is not None and given is not None and given > made_for:
        raise InvalidInputError(
            f"generation.max_model_len is {given}, and the model's max_position_embeddings is {made_for}; vLLM takes "
            f"no more: set it to {made_for} or less, or leave it out"
        )
    check_responses(recipe, Room(length, source))
    return f"{config.get('model_type')} in {folder}"


def trainable_types(folder: Path, config: Mapping[str, Any]) -> tuple[str, str]:
    """The model types of a config.json and of its part for text; PreconditionError where one cannot be trained."""
    kinds = str(config.get("model_type")), str(text_config(config).get("model_type"))
    if refused := next(filter(why_refused, kinds), None):
        raise PreconditionError(f"run.model is {folder}: {refused!r} cannot be trained: {why_refused(refused)}")
    return kinds


def longest(recipe: Recipe, config: Mapping[str, Any]) -> tuple[int | None, str]:
    """Tokens of prompt and response that fit, and what says so; None where only the engine can tell."""
    if recipe.generation.max_model_len is not None:
        return recipe.generation.max_model_len, "generation.max_model_len"
    return context_length(config), "the model's max_position_embeddings"


def _engine(recipe: Recipe) -> str:
    from services.generation.engines.registry import engines

    name, known = recipe.generation.engine, engines()
    if name not in known:
        raise NotFoundError(f"generation.engine is {name!r}; known: {', '.join(known)}")
    if name in _INSTALL and importlib.util.find_spec(name) is None:
        raise MissingDependencyError(f"generation.engine is {name!r}, and {name} is not installed; {_INSTALL[name]}")
    return name


def _limits(recipe: Recipe) -> str:
    """What the engine itself would refuse of this model when it starts."""
    folder, chosen = recipe.run.require_model(), recipe.generation
    config = read_json(folder / "config.json")
    length, source = longest(recipe, text_config(config))
    if chosen.engine == "torch":
        torch.refuse(text_config(config))
    if chosen.engine == "vllm":
        limits = chosen.max_model_len, chosen.max_num_seqs
        vllm.refuse(folder, config, chosen.vllm, limits, on_cpu=False)  # see `machine` for what it is here
        if length is not None:
            memory.check_kv_cache(recipe, read(folder), length, source)
    return f"{chosen.engine} can serve the model" + (f", {length} tokens a sequence" if length else "")


def _routers(recipe: Recipe) -> str:
    export = recipe.generation.router_export
    if recipe.learner.uses_traces and export not in (RouterExport.TOPK, RouterExport.FULL):
        raise InvalidInputError(
            f"generation.router_export is {str(export)!r}; learner.algorithm {recipe.learner.algorithm!r} needs router "
            "scores with every token: set topk"
        )
    needing = recipe.learner.needs_exact_scores
    if recipe.learner.uses_traces and needing and recipe.generation.router_scores is not ScoreDtype.FLOAT16:
        raise InvalidInputError(
            f"generation.router_scores is {str(recipe.generation.router_scores)!r}; learner.{needing} needs float16: "
            "leave it out, or set that"
        )
    needing, layers = recipe.learner.needs_all_layers, recipe.generation.router_layers
    if recipe.learner.uses_traces and needing and layers is not None:
        raise InvalidInputError(
            f"generation.router_layers is {layers}; learner.{needing} needs the routes of all layers: leave it out"
        )
    return f"{recipe.learner.algorithm}, router export {export}"


def _task(recipe: Recipe) -> str:
    from services.curriculum.origin import NO_PROMPTS
    from services.curriculum.problems import TaskProblems
    from services.curriculum.tasks.registry import make_task, tasks
    from services.reward.verifiers.registry import make_verifiers, unknown_in_words

    verifiers = make_verifiers(recipe.reward.verifiers)
    if (name := recipe.run.task) is None:
        if not recipe.data.train:
            raise InvalidInputError(NO_PROMPTS)
        return _sources(recipe, verifiers)
    known = tasks()
    if name not in known:
        raise NotFoundError(f"run.task is {name!r}; known: {', '.join(known)}")
    task = known[name]
    if task.environment:
        try:
            check_environment(task.environment, task.verifier, make_environments(recipe.environments.named))
        except RouterShiftError as error:
            raise type(error)(f"run.task is {name!r}: {error}") from None
    if task.verifier and task.verifier not in verifiers:
        raise NotFoundError(f"run.task is {name!r}: {unknown_in_words(task.verifier, verifiers)}")
    TaskProblems(make_task(name, recipe.run.seed), recipe).held_out()
    return f"{name}, {treated(task.verifier, task.environment)}"


def treated(verifier: str, environment: str) -> str:
    """Who plays and who judges the responses to a problem."""
    played = f"played in environment {environment}" if environment else ""
    judged = f"judged by {verifier}" if verifier else "rewarded there"
    return ", ".join(part for part in (played, judged) if part)


def treated_rows(source: SourceSettings) -> str:
    """The same of the rows of a source."""
    by_row = "what each row names" if "verifier" in source.columns else ""
    return treated(source.verifier or by_row, source.environment or "")


def _sources(recipe: Recipe, verifiers: Mapping[str, AnyVerifier]) -> str:
    """What can be told without reading rows: files are there, verifiers are known, and get the references they need."""
    from services.reward.verifiers.registry import unknown_in_words

    environments = make_environments(recipe.environments.named)
    for where, source in _tables(recipe):
        _files(where, source)
        if source.environment is not None:
            judged = source.verifier or ("of its row" if "verifier" in source.columns else "")
            try:
                check_environment(source.environment, judged, environments)
            except RouterShiftError as error:
                raise type(error)(f"{where}: {error}") from None
        if source.verifier is None:  # rows name theirs
            continue
        if source.verifier not in verifiers:
            raise NotFoundError(f"{where}: {unknown_in_words(source.verifier, verifiers)}")
        needed = verifiers[source.verifier].reference_schema.get("required", [])
        missing = [name for name in needed if name not in source.columns]
        if missing and "reference" not in source.columns:
            raise InvalidInputError(
                f"{where}: verifier {source.verifier} reads {', '.join(missing)} of a reference, and columns names "
                f"no such field; set columns.{missing[0]}, or columns.reference to a column with all of it"
            )
    return "; ".join(f"{source.label}, {treated_rows(source)}" for source in recipe.data.train)


def _tables(recipe: Recipe) -> Iterator[tuple[str, SourceSettings]]:
    """The sources of training and of held-out sets, by the names of their tables."""
    yield from ((f"data.train.{index}", source) for index, source in enumerate(recipe.data.train))
    yield from ((f"data.eval.{index}", source) for index, source in enumerate(recipe.data.eval))


def _files(where: str, source: SourceSettings) -> list[Path]:
    """The files of a source; none of one that is no file. Raises what `find_files` raises, with the table's name."""
    try:
        return find_files(source.source) if is_file(source.source) else []
    except RouterShiftError as error:
        raise type(error)(f"{where}: {error}") from None


def _data(recipe: Recipe) -> str:
    """Reads the rows as the curriculum will, where that takes seconds: what it refuses is known before it starts."""
    from services.curriculum.data.loading import load

    tables = list(_tables(recipe))
    if not tables:
        return "none: prompts come from a task"
    if not all(is_file(source.source) for _, source in tables):
        return "by name: the curriculum reads it when the run starts"
    size = sum(file.stat().st_size for table in tables for file in _files(*table))
    if size > _DATA_BYTES:
        return f"{sizes.in_words(size)}, which the curriculum reads when the run starts; `routershift data check` now"
    folder = recipe.run.require_model()
    room = Room(*longest(recipe, text_config(read_json(folder / "config.json"))))
    loaded = load(recipe, folder, make_judge(recipe), room)
    if loaded.errors:
        raise loaded.errors[0]
    return f"{sum(map(len, loaded.train))} rows to train on, {sum(map(len, loaded.eval))} held out"


def _trackers(recipe: Recipe) -> str:
    for service in ("learner", "curriculum"):
        make_trackers(recipe.run.trackers, recipe, service)
    return ", ".join(recipe.run.trackers) or "none"


def _traces(recipe: Recipe) -> str:
    check_traces(recipe.traces)
    return recipe.traces.endpoint or "none"


def _ports(recipe: Recipe) -> str:
    moved = ports.plan(recipe).moved
    if not moved:
        return "free"
    taken = ", ".join(f"{setting} {port}" for setting, port in moved.items())
    return f"taken, so that run and up would take free ones instead: {taken}"


def _streams(recipe: Recipe) -> str:
    chosen = recipe.generation
    layout = layout_of_folder(recipe.run.require_model())
    check_layers(chosen, layout)
    trajectory = trajectory_bytes(
        recipe.run,
        recipe.rollout,
        layout,
        chosen.router_export,
        chosen.router_scores,
        chosen.router_layers,
        without_arrays=recipe.payloads.store != "stream",
    )
    check_step_fits(recipe.run, recipe.rollout, recipe.streams, trajectory)
    if not recipe.names_redis:
        check_memory(recipe.streams, MAX_MEMORY_BYTES)
    step = recipe.run.groups_per_step * recipe.rollout.n * trajectory
    most = recipe.streams.max_bytes
    return f"a step takes at most {sizes.in_words(step)} of streams.max_bytes, which is {sizes.in_words(most)}"


# By what they look at. Each gives what it found, in words.
CHECKS: Mapping[str, Callable[[Recipe], str]] = {
    "model": _model,
    "engine": _engine,
    "limits": _limits,
    "algorithm": _routers,
    "task": _task,
    "data": _data,
    "evaluations": check_load,
    "streams": _streams,
    "trackers": _trackers,
    "traces": _traces,
    "ports": _ports,
}
