"""Guesses the settings of a run from a model and the first rows of a file, and says why."""

import contextlib
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from routershift.routing.families import family_of
from services.cli.dry_run import memory
from services.cli.judging import make_judge
from services.cli.preflight import longest, trainable_types
from services.cli.recipe import Recipe
from services.cli.recipes.columns import is_unique, named, paths, value
from services.curriculum.data.files import find_files, read_file
from services.curriculum.data.items import Item, ItemMaker
from services.curriculum.data.presets import PRESETS
from services.curriculum.data.rows import BadRow, Row
from services.curriculum.data.settings import TrainSettings
from services.curriculum.data.usable import Judge
from services.generation.engines.torch import limits as torch_engine
from services.generation.engines.vllm import limits as vllm
from services.generation.settings import GenerationSettings
from services.planner.model import read
from shared.errors import InvalidInputError, NotFoundError, PreconditionError, RouterShiftError
from shared.models.folder import read_json
from shared.models.layout import layout_of_folder, text_config
from shared.models.tokenizer import load_tokenizer
from shared.recipes import load
from shared.streams.capacity import trajectory_bytes

_ROWS = 200  # that are looked at
_ENOUGH = 0.9  # share of them that a guess must fit
_PROMPTS = ("prompt", "question", "problem", "messages", "instruction", "query", "input", "text", "conversations")
_REFERENCES = (
    "answer", "final_answer", "ground_truth", "reward_model.ground_truth", "solution", "reference", "target", "label",
    "expected", "expected_answer", "output", "response", "gold",
)  # fmt: skip
_CONTEXTS = ("input", "context", "passage")  # what a prompt is about, where it stands in a column of its own
_IDS = ("id", "uuid", "problem_id", "question_id", "extra_info.index", "unique_id")
_NUMBER = re.compile(r"\s*[-+]?\$?\d[\d,]*(\.\d+)?%?\s*")
_LETTER = re.compile(r"\s*\(?[A-Ja-j]\)?\s*")
_LONGEST_RESPONSE = 1024
_NAMED = 5  # abilities, in a reason


@dataclass
class Guess:
    """Settings of a run, as dotted names and values, and the reasons for those that were guessed."""

    model: str
    source: Path
    reward: Path | None  # a file whose function judges, in place of the verifier that would be guessed
    data: dict[str, Any]  # keys of the table [[data.train]] but the source
    settings: dict[str, Any]  # others
    reasons: list[str] = field(default_factory=list)  # a line each

    def recipe(self, flags: Sequence[str] = ()) -> Recipe:
        """The settings as a run would have them."""
        from tempfile import TemporaryDirectory

        from services.cli.recipes.write import write

        with TemporaryDirectory() as folder:
            file = Path(folder) / "recipe.toml"
            write(self, file, keep_paths=True)
            return load(Recipe, file, os.environ, flags)


def guess(
    model: str, source: Path, reward: Path | None = None, prompt: str | None = None, reference: str | None = None
) -> Guess:
    """Reads the first rows of a file, and tokenizer and config of a model.

    Args:
        model: a folder, or a name on the Hugging Face Hub.
        source: of rows.
        reward: a file with a function `score`, which judges every response.
        prompt, reference: the dotted paths of columns; those that are not given are guessed by their names.

    Raises:
        NotFoundError, CorruptDataError: the model or a file is missing or broken, or `reward` has no such function.
        InvalidInputError: no column looks like a prompt or a right answer; names the columns that there are.
        PreconditionError: a family that cannot be trained, or that no engine follows.
    """
    if reward is not None and not reward.is_file():
        raise NotFoundError(f"--reward {reward} does not exist; expected a Python file with a function score")
    _judge(reward)
    folder = load(Recipe, None, os.environ, [f"run.model={model}"]).run.require_model(weights=False)
    trainable_types(folder, read_json(folder / "config.json"))
    read = islice((row for path in find_files(str(source)) for row in read_file(path)), _ROWS)
    found = list(read)
    rows = [row for row in found if isinstance(row, Row)]
    if not rows:
        raise InvalidInputError(f"none of the first {len(found)} rows of {source} can be read: {found[0]}")
    tokenizer = load_tokenizer(folder)
    made = Guess(model, source, reward, {}, {})
    if (bad := len(found) - len(rows)) > 0:
        first = next(row for row in found if isinstance(row, BadRow))
        made.reasons.append(f"{bad} of the first {len(found)} rows cannot be read, as {first}")
    if not tokenizer.chat_template:
        made.data["chat_template"] = False
        made.reasons.append("chat_template = false: the model has none, so it reads the prompt as it is")
    items = _data(made, rows, tokenizer, folder, (prompt, reference))
    if unread := _unread(made, rows, tokenizer, folder):
        made.reasons.append(
            f"not read: {', '.join(unread)}; name a column in prompt for the policy to see it, or in columns for the "
            "verifier"
        )
    _run(made, folder, max((item.token_ids.size for item in items), default=0))
    made.reasons = [" ".join(reason.split()) for reason in made.reasons]  # names of columns may hold line breaks
    return made


def _data(
    made: Guess, rows: Sequence[Row], tokenizer: Any, folder: Path, given: tuple[str | None, str | None]
) -> list[Item]:
    """Fills in where a prompt and a reference stand in a row; gives the rows as items. Args: given: these columns."""
    for name in PRESETS:
        if made.reward is not None or given != (None, None):
            break  # presets name columns and verifiers of their own, and a reward file reads the column as it is
        items = _items(made, {**made.data, "preset": name}, rows, tokenizer, folder)
        if len(items) >= _ENOUGH * len(rows):
            made.data = {"preset": name, **made.data}
            judges = ", ".join(dict.fromkeys(item.verifier for item in items))
            why = f"{len(items)} of {len(rows)} rows have its columns"
            made.reasons.append(f"preset = {name!r}: {why}, judged by {judges}")
            return items
    there = list(dict.fromkeys(path for row in rows[:20] for path in paths(row.columns)))
    prompt = given[0] or named([path for path in there if path != given[1]], _PROMPTS)
    reference = given[1] or named([path for path in there if path != prompt], _REFERENCES)
    for flag, what, column in (("--prompt", "a prompt", prompt), ("--reference", "a right answer", reference)):
        if column is None:
            raise InvalidInputError(
                f"no column of {made.source} has a name that {what} usually has; it has {', '.join(there)}: name the "
                f"right one with {flag}"
            )
        if all(value(row.columns, column) is None for row in rows):
            raise InvalidInputError(
                f"{flag} is {column!r}, and the first rows of {made.source} have nothing there; "
                f"they have {', '.join(there)}"
            )
    if made.reward is not None:
        verifier, why = "mine", f"the function score of {made.reward}"
    else:
        verifier, why = _verifier([value(row.columns, str(reference)) for row in rows])
    made.reasons += [
        f"columns.prompt = {prompt!r} and columns.reference = {reference!r}: "
        + (f"by their names, of {', '.join(there)}" if None in given else "as they were named"),
        f"verifier = {verifier!r}: {why}",
    ]
    abilities = sorted({str(row.columns["ability"]) for row in rows if row.columns.get("ability")})
    if abilities and made.reward is None:
        made.reasons.append(
            f"CHOOSE verifier: the column ability says {', '.join(abilities[:_NAMED])}, and {verifier} is but a guess"
        )
    columns: dict[str, Any] = {"prompt": prompt, "reference": reference}
    context = next((name for name in _CONTEXTS if name in there and name not in columns.values()), None)
    if context and str(prompt).isidentifier() and not given[0]:
        # Without columns.prompt: rows of one instruction are problems of their own.
        del columns["prompt"]
        made.data["prompt"] = f"{{{{ {prompt} }}}}{{% if {context} %}}\n\n{{{{ {context} }}}}{{% endif %}}"
        made.reasons.append(f"prompt: the column {prompt}, and below it the column {context} where it has text")
    made.data |= {"columns": columns, "verifier": verifier}
    if (identity := named(there, _IDS)) and is_unique([value(row.columns, identity) for row in rows]):
        made.data["columns"]["id"] = identity
    return _items(made, made.data, rows, tokenizer, folder)


def _judge(reward: Path | None) -> Judge:
    """Raises as `make_verifiers` does, as where the file has no function `score`."""
    mine = [] if reward is None else [f"reward.verifiers.mine.file={reward.absolute()}"]
    return make_judge(load(Recipe, None, {}, ["run.model=none", *mine]))


def _items(made: Guess, table: Mapping[str, Any], rows: Sequence[Row], tokenizer: Any, folder: Path) -> list[Item]:
    """The rows that such a table can use; none where the table itself is refused, or a verifier is unknown."""
    try:
        settings = TrainSettings.model_validate({"source": str(made.source), **table})
        judge = _judge(made.reward)
        found = list(ItemMaker(settings, "data.train.0", tokenizer, folder).make(rows))
        return [item for item in found if isinstance(item, Item) and judge(item.verifier, item.reference) is None]
    except (RouterShiftError, ValueError):
        return []


def _unread(made: Guess, rows: Sequence[Row], tokenizer: Any, folder: Path) -> list[str]:
    """Columns that nothing of the guessed table reads."""
    settings = TrainSettings.model_validate({"source": str(made.source), **made.data})
    columns = dict.fromkeys(name for row in rows for name in row.columns)
    return ItemMaker(settings, "data.train.0", tokenizer, folder).unread(columns)


def _run(made: Guess, folder: Path, longest_prompt: int) -> None:
    """What follows from the model."""
    config = text_config(read_json(folder / "config.json"))
    room = config.get("max_position_embeddings")
    response = _LONGEST_RESPONSE
    if isinstance(room, int):
        response = max(1, min(response, room - 2 * longest_prompt))  # later rows may be longer than the first
        made.reasons.append(
            f"rollout.max_tokens = {response}: the longest of the first prompts has {longest_prompt} tokens, and the "
            f"model reads {room}"
        )
    made.settings["rollout.max_tokens"] = response
    is_known = family_of(str(config.get("model_type"))) is not None
    made.settings["learner.algorithm"] = "rspo" if is_known else "gmpo"
    made.reasons.append(
        f"learner.algorithm = {made.settings['learner.algorithm']!r}: model type {config.get('model_type')!r} "
        + ("has routers that are known" if is_known else "has no routers that are known, which rspo needs")
    )
    engine, why = _engine(folder)
    made.settings["generation.engine"] = engine
    made.reasons.append(f"generation.engine = {engine!r}: {why}")
    import torch

    made.settings["learner.device"] = "cuda" if torch.cuda.is_available() else "cpu"
    with contextlib.suppress(NotFoundError):  # the weights of a name on the Hub may not be here yet
        _sizes(made, folder)


def _engine(folder: Path) -> tuple[str, str]:
    """An engine that can sample from what is trained, on this machine, and why it is that one.

    Raises PreconditionError where none can.
    """
    config, chosen = read_json(folder / "config.json"), GenerationSettings()
    why = "vllm is not installed"
    if importlib.util.find_spec("vllm"):
        try:
            vllm.refuse(folder, config, chosen.vllm, (None, chosen.max_num_seqs), on_cpu=vllm.built_for_cpu())
            return "vllm", "vllm is installed"
        except PreconditionError as error:
            why = str(error).partition(";")[0]
    torch_engine.refuse(text_config(config))
    return "torch", why


def _sizes(made: Guess, folder: Path) -> None:
    """What must be larger than its default for this model."""
    flags = [f"{name}={value}" for name, value in made.settings.items()]
    recipe = load(Recipe, None, os.environ, ["run.model=none", *flags])
    layout, chosen = layout_of_folder(folder), recipe.generation
    each = trajectory_bytes(
        recipe.run, recipe.rollout, layout, chosen.router_export, chosen.router_scores, chosen.router_layers
    )
    tickets = recipe.run.tickets * recipe.rollout.n * each
    if tickets > recipe.streams.max_bytes:
        made.settings["streams.max_bytes"] = _power_of_two(tickets)
        made.reasons.append(f"streams.max_bytes: all tickets take {tickets} bytes where responses are that long")
    model = read(folder)
    room, _ = longest(recipe, model.text)
    if room is not None and memory.sequences_that_fit(recipe, model, room) == 0:
        needed = 4 * room * model.kv_width * model.width  # a few at once
        made.settings["generation.vllm.kv_cache_bytes"] = _power_of_two(needed)
        made.reasons.append(f"generation.vllm.kv_cache_bytes: vLLM must hold a whole sequence of {room} tokens")


def _power_of_two(least: int) -> int:
    return 1 << (least - 1).bit_length()


def _verifier(answers: Sequence[Any]) -> tuple[str, str]:
    """Who can judge by such references, and why."""
    texts = [text for answer in answers if isinstance(answer, str | int | float) and (text := str(answer).strip())]
    if texts and all(_LETTER.fullmatch(text) for text in texts):
        return "choice", "all answers are single letters"
    if texts and all(_NUMBER.fullmatch(text) for text in texts):
        return "math", "all answers are numbers"
    if any("\\" in text or "$" in text or "^" in text for text in texts):
        return "math", "answers are written in LaTeX"
    return "exact", "answers are words, which a response must say exactly; a verifier of your own may judge better"
