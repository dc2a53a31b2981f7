"""What a recipe would do, found out from configs, tokenizer and first rows: nothing is started, no weights are read."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from services.cli.dry_run import memory
from services.cli.dry_run.lines import Kind, Line
from services.cli.dry_run.prompts import Prompts, read_prompts
from services.cli.machine import device_bytes
from services.cli.preflight import CHECKS, longest
from services.cli.recipe import Recipe
from services.planner.memory import Part, of_machine
from services.planner.model import Model, read
from shared.errors import NotFoundError, RouterShiftError
from shared.models.folder import INDEX
from shared.models.layout import layout_of_folder
from shared.sizes import in_words
from shared.streams.capacity import trajectory_bytes

_NEEDS_MODEL = ("model", "limits", "data", "streams")  # checks that read the model folder


def plan(recipe: Recipe) -> list[Line]:
    """The whole plan, what must be mended last. No fault of the recipe is raised: each is a line."""
    lines = list(_run(recipe))
    model, missing = _model_folder(recipe)
    lines += missing
    for name, check in CHECKS.items():
        if missing and name in _NEEDS_MODEL:
            continue
        lines.append(_checked(name, recipe, check))
    faulty = {line.text.partition(": ")[0] for line in lines if line.kind == "MEND"}
    prompts = read_prompts(recipe, model, faulty)
    lines += prompts.lines
    if model is not None and (not missing or (model / INDEX).is_file()):
        try:
            lines += _sizes(recipe, model, prompts)
            lines += [] if missing else _streams(recipe, model)
        except RouterShiftError as error:
            lines.append(Line("MEND", "memory", str(error)))
    order: Sequence[Kind] = ("", "note", "MEND")
    return sorted(_once(lines), key=lambda line: order.index(line.kind))


def _once(lines: Sequence[Line]) -> list[Line]:
    """Two checks may find the same fault: a cause is said once."""
    found: dict[str | Line, Line] = {}
    for line in lines:
        found.setdefault(line.text if line.kind == "MEND" else line, line)
    return list(found.values())


def _run(recipe: Recipe) -> Iterator[Line]:
    run, rollout = recipe.run, recipe.rollout
    groups = run.steps * run.groups_per_step
    yield Line(
        "",
        "run",
        f"{run.steps} steps x run.groups_per_step {run.groups_per_step} x rollout.n {rollout.n} = "
        f"{groups * rollout.n} responses to {groups} prompts, of at most {rollout.max_tokens} tokens",
    )
    yield Line(
        "",
        "tickets",
        f"{run.tickets} prompts in flight, {run.tickets * rollout.n} responses: "
        + (
            "run.groups_in_flight"
            if run.groups_in_flight
            else f"(run.max_staleness {run.max_staleness} + 1) x run.groups_per_step"
        ),
    )


def _model_folder(recipe: Recipe) -> tuple[Path | None, list[Line]]:
    """The folder of the model, and a line that says what is missing; None where nothing of it is here.

    A name on the Hub is fetched when the run begins, on the machine that it runs on, so its absence here is no fault.
    Config and tokenizer alone are of use too.
    """
    try:
        return recipe.run.require_model(), []
    except RouterShiftError as error:
        if not isinstance(error, NotFoundError) or isinstance(recipe.run.model, Path):
            return None, [Line("MEND", "model", f"{error}{_how_it_is_made(recipe)}")]
        lines = [Line("note", "model", f"not there, so what needs its weights is left out: {error}")]
    try:
        return recipe.run.model_folder(weights=False), lines
    except RouterShiftError:
        return None, lines


def _how_it_is_made(recipe: Recipe) -> str:
    """A hint where a recipe brings a script for its model in place of the model."""
    model = recipe.run.model
    script = model.parent / "make_model.py" if isinstance(model, Path) and not model.exists() else None
    return f". It is made by {script}" if script and script.is_file() else ""


def _checked(name: str, recipe: Recipe, check: Callable[[Recipe], str]) -> Line:
    try:
        return Line("", name, check(recipe))
    except RouterShiftError as error:
        return Line("MEND", name, str(error))


def _sizes(recipe: Recipe, folder: Path, prompts: Prompts) -> Iterator[Line]:
    model = read(folder)
    longest_prompt = max(prompts.lengths, default=0)
    yield Line("", "model", f"{model.parameters:,} parameters of {model.width} bytes in {folder}")
    yield from _lengths(recipe, model, longest_prompt)
    parts = list(memory.parts(recipe, model, longest_prompt))
    for part in parts:
        about = "about " if part.is_estimate else ""
        yield Line("", "memory", f"{part.component:<10} {part.what:<28} {about}{in_words(part.bytes)} on {part.device}")
    yield from _devices(recipe, of_machine(parts, recipe.learner.parallel.processes))


def _lengths(recipe: Recipe, model: Model, longest_prompt: int) -> Iterator[Line]:
    room, source = longest(recipe, model.text)
    if room is None:
        return
    both = longest_prompt + recipe.rollout.max_tokens
    if longest_prompt and both > room > recipe.rollout.max_tokens:  # else it is said of the model
        yield Line(
            "MEND",
            "lengths",
            f"the longest of the first prompts has {longest_prompt} tokens, with rollout.max_tokens "
            f"{recipe.rollout.max_tokens} that is {both}, and {source} leaves room for {room}; lower "
            f"rollout.max_tokens to {max(1, room - longest_prompt)} or less, or leave such prompts out",
        )
    fitting = memory.sequences_that_fit(recipe, model, room)
    if fitting is None:
        return
    text = f"the KV cache holds {fitting} sequences of {room} tokens at once; generation.max_num_seqs is"
    yield Line("", "lengths", f"{text} {recipe.generation.max_num_seqs}")


def _streams(recipe: Recipe, folder: Path) -> Iterator[Line]:
    chosen = recipe.generation
    layout = layout_of_folder(folder)
    each = trajectory_bytes(
        recipe.run, recipe.rollout, layout, chosen.router_export, chosen.router_scores, chosen.router_layers
    )
    tickets = recipe.run.tickets * recipe.rollout.n * each
    text = f"a longest response takes {in_words(each)}, all tickets at that length {in_words(tickets)}"
    yield Line("", "streams", text)
    if tickets > recipe.streams.max_bytes:
        yield Line(
            "note",
            "streams",
            f"streams.max_bytes is {recipe.streams.max_bytes}, and all tickets take {tickets}: where responses are "
            f"that long, producers wait and checkpoints come early; {tickets} avoids it",
        )


def _devices(recipe: Recipe, parts: Sequence[Part]) -> Iterator[Line]:
    """What each device has to hold, and whether it can: the ranks of a learner share the host memory of a machine."""
    share = recipe.generation.vllm.gpu_memory_utilization
    for device in dict.fromkeys(part.device for part in parts):
        own = [part for part in parts if part.device == device]
        needed = sum(part.bytes for part in own)
        exact = sum(part.bytes for part in own if not part.is_estimate)
        total = device_bytes(device)
        if total is None:
            yield Line("", "memory", f"{'sum':<39} {in_words(needed)} on {device}")
            yield Line("note", "memory", f"this machine has no {device}, so its memory was not compared")
            continue
        yield Line("", "memory", f"{'sum':<39} {in_words(needed)} on {device}, which has {in_words(total)}")
        if share is not None and any(part.component == "generation" for part in own):
            reserved = int(share * total) - sum(part.bytes for part in own if part.component == "generation")
            yield Line("", "memory", f"{'of which generation.vllm.gpu_memory_utilization takes':<39} {share:g}")
            needed, exact = needed + max(0, reserved), exact + max(0, reserved)
        if needed > total:
            largest = memory.largest(own)
            kind: Kind = "MEND" if exact > total else "note"
            yield Line(
                kind,
                "memory",
                f"{in_words(needed)} do not fit into the {in_words(total)} of {device}; the largest part is "
                f"{in_words(largest.bytes)} of {largest.component} for {largest.what}: change {largest.change}",
            )
