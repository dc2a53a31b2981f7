"""Writes a guessed recipe, each setting with a comment where it stands."""

import os
from collections.abc import Iterator
from pathlib import Path

from services.cli.recipes.guess import Guess
from shared import toml

_COMMENTS = {
    "preset": "form of a known data set; the other keys of this table change it",
    "prompt": "Jinja template over the columns, which makes the text of the user",
    "columns": "where the prompt and the right answer stand in a row; dots lead into tables",
    "verifier": "who judges a response: math, exact, choice, regex, code, or a name in [reward.verifiers]",
    "chat_template": "the model has no chat template",
}


def write(guess: Guess, file: Path, *, keep_paths: bool = False) -> None:
    """Writes the recipe. Raises FileExistsError where there is a file.

    Args:
        keep_paths: model and data stay where they are, however the recipe moves; else paths are relative to it.
    """
    with file.open("x", encoding="utf-8") as stream:
        stream.write("\n".join(_lines(guess, None if keep_paths else file.absolute().parent)) + "\n")


def _lines(guess: Guess, folder: Path | None) -> Iterator[str]:
    is_folder = Path(guess.model).is_dir()
    model = _relative(Path(guess.model), folder) if is_folder else guess.model
    yield "# Made by `routershift init`. `routershift settings` lists every setting with its default."
    for reason in guess.reasons:
        yield f"# {reason}"
    yield ""
    yield "[run]"
    yield f"model = {toml.inline(model)}  # {'relative to this file' if is_folder else 'on the Hugging Face Hub'}"
    yield "steps = 100  # optimizer steps, each of which publishes a version"
    yield "groups_per_step = 32  # prompts of a step"
    yield "max_staleness = 2  # versions that a rollout may be behind when it is trained on; 0: synchronous"
    yield "evaluate_every = 20  # versions between evaluations on held-out rows"
    yield ""
    yield "[rollout]"
    yield "n = 8  # responses to each prompt, whose rewards are compared"
    yield f"max_tokens = {guess.settings['rollout.max_tokens']}  # longest response"
    yield "temperature = 1.0  # of the policy that samples, and of the one that is trained"
    yield ""
    if (room := guess.settings.get("streams.max_bytes")) is not None:
        yield "[streams]"
        yield f"max_bytes = {room}  # bytes in one of the streams between the services"
        yield ""
    yield "[data]"
    yield "held_out_share = 0.05  # of the rows, for evaluation; a table [[data.eval]] in its place names other data"
    yield ""
    yield "[[data.train]]"
    yield f"source = {toml.inline(_relative(guess.source, folder))}  # a file, a glob of files, or a data set by name"
    for key, value in guess.data.items():
        yield f"{key} = {toml.inline(value)}  # {_COMMENTS[key]}"
    yield ""
    if guess.reward is not None:
        yield "[reward.verifiers.mine]"
        yield f"file = {toml.inline(_relative(guess.reward, folder))}  # its function score(response, reference) judges"
        yield ""
    yield "[generation]"
    yield f"engine = {toml.inline(guess.settings['generation.engine'])}  # vllm, or torch"
    if guess.settings["learner.device"] == "cuda":
        yield 'vllm.dtype = "bfloat16"  # as most weights are published'
        yield "vllm.gpu_memory_utilization = 0.4  # of each GPU's memory; the rest is the learner's"
    elif (cache := guess.settings.get("generation.vllm.kv_cache_bytes")) is not None:
        yield f"vllm.kv_cache_bytes = {cache}  # room for a few sequences of the model's full length"
    yield ""
    yield "[learner]"
    yield f"algorithm = {toml.inline(guess.settings['learner.algorithm'])}  # rspo where routers are known, else gmpo"
    yield f"device = {toml.inline(guess.settings['learner.device'])}  # cpu, or cuda"
    yield "optimizer.learning_rate = 1e-6  # ten times as much is usual with lora.rank"
    yield "checkpoints.every = 10  # steps between checkpoints"


def _relative(path: Path, folder: Path | None) -> str:
    """With a dot in front, so that no model folder is taken for a name on the Hub; absolute without a folder."""
    if folder is None:
        return str(path.absolute())
    text = os.path.relpath(path.absolute(), folder)
    return text if text.startswith("..") else f"./{text}"
