"""How to split GPUs between learner and generation: what fits, how fast it is, and how stale trajectories will be."""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any

from services.cli.arguments import add_settings
from services.cli.dry_run.memory import lora_parameters
from services.cli.recipe import Recipe
from services.planner import split as splits
from services.planner.hardware import GPUS, gpu_of
from services.planner.memory import Part
from services.planner.model import described
from services.planner.simulation import Outcome
from services.planner.split import Cluster, Split
from services.planner.throughput import Assumptions, Workload, trajectory_bytes
from shared.errors import InvalidInputError
from shared.process.exits import EXIT_OK
from shared.recipes import load
from shared.sizes import in_words

# What people train on GPUs, where the defaults of the settings are those of the demo.
_DEFAULTS = (
    "learner.device=cuda",
    "learner.precision=bfloat16",
    "learner.activation_checkpointing=true",
    "run.groups_per_step=64",
    "rollout.n=8",
    "rollout.max_tokens=8192",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="a folder with a config.json, or a name, as qwen3-30b-a3b: nothing is downloaded"
    )
    parser.add_argument("--gpus", type=int, required=True, help="GPUs in all, in machines of 8")
    parser.add_argument("--gpu", required=True, help=f"of which kind: {', '.join(GPUS)}")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="tokens of a prompt; default: 512")
    parser.add_argument(
        "--mean-tokens", type=int, help="tokens of a response on average; default: a quarter of the most"
    )
    parser.add_argument("--spread", type=float, default=0.8, help="of the logarithm of their lengths; default: 0.8")
    parser.add_argument("--stream-bandwidth", type=float, default=1e9, help="bytes a second of Redis; default: 1e9")
    parser.add_argument(
        "--assume", action="append", default=[], metavar="NAME=NUMBER", help="in place of an assumption that is shown"
    )
    parser.add_argument("--steps", type=int, default=20, help="steps that are simulated; default: 20")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    add_settings(parser)


def run(arguments: argparse.Namespace) -> int:
    """Raises what `described`, `gpu_of` and `best` raise, and InvalidInputError for numbers that describe nothing."""
    cluster = _cluster(arguments)
    chosen, outcome = splits.best(cluster, arguments.spread, arguments.steps)
    parts = (*splits.learner_parts(cluster, chosen.learner_gpus), *splits.generation_parts(cluster, chosen))
    if arguments.json:
        print(json.dumps(_record(cluster, chosen, parts, outcome), indent=2))
    else:
        print("\n".join(_text(cluster, chosen, parts, outcome)))
    return EXIT_OK


def _cluster(arguments: argparse.Namespace) -> Cluster:
    """The settings are those of a recipe: run.groups_per_step, rollout.n, rollout.max_tokens, learner.*."""
    for option, least in (("gpus", 2), ("prompt_tokens", 1), ("mean_tokens", 1), ("steps", 1)):
        number = getattr(arguments, option)
        if number is not None and number < least:
            raise InvalidInputError(f"--{option.replace('_', '-')} is {number}; it must be at least {least}")
    model, assumed = described(arguments.model), _assumed(arguments.assume)
    recipe = load(Recipe, None, {}, [f"run.model={arguments.model}", *_DEFAULTS, *arguments.flags])
    rollout = recipe.rollout
    work = Workload(
        groups=recipe.run.groups_per_step,
        n=rollout.n,
        prompt_tokens=arguments.prompt_tokens,
        mean_tokens=min(arguments.mean_tokens or max(1, rollout.max_tokens // 4), rollout.max_tokens),
        max_tokens=rollout.max_tokens,
    )
    return Cluster(
        model=model,
        gpu=gpu_of(arguments.gpu),
        gpus=arguments.gpus,
        work=work,
        max_staleness=recipe.run.max_staleness,
        tickets=recipe.run.tickets,
        learner=recipe.learner,
        generation=recipe.generation,
        trained=lora_parameters(recipe, model) if recipe.learner.lora.rank else None,
        stream_bandwidth=arguments.stream_bandwidth,
        assumed=assumed,
    )


def _assumed(given: Sequence[str]) -> Assumptions:
    names = [field.name for field in dataclasses.fields(Assumptions)]
    changes: dict[str, float] = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            raise InvalidInputError(f"--assume {text!r} is not NAME=NUMBER") from None
        if name not in names:
            raise InvalidInputError(f"--assume {text!r}: names are {', '.join(names)}")
        # Times may be 0 and have no end. Shares of what there is may not be 0, nor the share that is unused all.
        low, high = (0.0, 1e6) if name.endswith("_seconds") else (0.0, 0.99) if name == "unused" else (0.01, 1.0)
        if not low <= number <= high:
            raise InvalidInputError(f"--assume {text!r}: {name} must be from {low:g} to {high:g}")
        changes[name] = number
    return dataclasses.replace(Assumptions(), **changes)


def _record(cluster: Cluster, chosen: Split, parts: Sequence[Part], outcome: Outcome) -> dict[str, Any]:
    model = cluster.model
    return {
        "model": {"parameters": model.parameters, "active_parameters": model.active_parameters},
        "gpu": dataclasses.asdict(cluster.gpu),
        "gpus": cluster.gpus,
        "workload": dataclasses.asdict(cluster.work) | {"max_staleness": cluster.max_staleness},
        "split": dataclasses.asdict(chosen),
        "memory": [dataclasses.asdict(part) for part in parts],
        "step_seconds": outcome.seconds / outcome.steps,
        "trained_tokens_per_second": outcome.trained_tokens / outcome.seconds,
        "sampled_tokens_per_second": outcome.sampled_tokens / outcome.seconds,
        "learner_busy": outcome.learner_busy,
        "sampling": outcome.sampling,
        "staleness": {"mean": outcome.staleness_mean, "groups": outcome.staleness, "dropped": outcome.stale},
        "stream": {
            "bytes_per_second": outcome.stream_bytes_per_second,
            "busy": outcome.stream_busy,
            "bytes_in_flight": _in_flight(cluster),
        },
        "assumptions": dataclasses.asdict(cluster.assumed),
    }


def _in_flight(cluster: Cluster) -> int:
    """Bytes of all tickets, were every response of average length."""
    responses = cluster.tickets * cluster.work.n
    return int(responses * trajectory_bytes(cluster.model, cluster.work.mean_tokens, cluster.generation))


def _text(cluster: Cluster, chosen: Split, parts: Sequence[Part], outcome: Outcome) -> Iterator[str]:
    model, work, gpu = cluster.model, cluster.work, cluster.gpu
    sampling = chosen.replicas * chosen.tensor_parallel
    active = f"{model.active_parameters / 1e9:.1f} compute a token"
    yield f"model       {model.parameters / 1e9:.1f} billion parameters, {active}"
    yield (
        f"step        {work.groups} prompts x {work.n} responses of {work.mean_tokens} tokens on average, at most "
        f"{work.max_tokens}; prompts of {work.prompt_tokens}"
    )
    yield (
        f"split       {chosen.learner_gpus} GPUs train, {sampling} sample: {chosen.replicas} replicas of "
        f"{chosen.tensor_parallel}, each {chosen.slots} responses at once"
    )
    for component in ("learner", "generation"):
        own = [part for part in parts if part.component == component and part.device == splits.DEVICE]
        for part in own:
            about = "about " if part.is_estimate else ""
            yield f"memory      {component:<10} {part.what:<28} {about}{in_words(part.bytes)}"
        total = in_words(sum(part.bytes for part in own))
        yield f"memory      {component:<10} {'sum, of each GPU':<28} {total} of {in_words(gpu.memory)}"
    seconds = outcome.seconds / outcome.steps
    yield f"time        a step {seconds:.1f} s, of which the learner trains {outcome.learner_busy:.0%}"
    yield f"time        replicas are {outcome.sampling:.0%} full; always full, {chosen.sample_seconds:.1f} s would do"
    yield f"tokens      {outcome.trained_tokens / outcome.seconds:,.0f} a second are trained on"
    lags = ", ".join(f"{lag}: {count}" for lag, count in outcome.staleness.items())
    yield f"staleness   {outcome.staleness_mean:.2f} versions on average (groups by versions: {lags})"
    yield f"staleness   {outcome.stale} groups dropped as too stale"
    yield (
        f"streams     {in_words(outcome.stream_bytes_per_second)} a second, {outcome.stream_busy:.0%} of the time; "
        f"all tickets {in_words(_in_flight(cluster))}"
    )
    for field in dataclasses.fields(Assumptions):
        yield f"assumed     {field.name:<18} {getattr(cluster.assumed, field.name):<6g} {field.metadata['help']}"
