"""A version of a run as a Hugging Face folder: copied, verified, and only then given its name."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.cli.evaluations import best as best_of
from services.cli.exporting.card import Card, without_place
from shared.errors import InvalidInputError, NotFoundError, PreconditionError
from shared.files import sync
from shared.models.folder import read_json, weight_files
from shared.tracking import records
from shared.tracking import settings as recorded
from shared.weights import published

BEST = "best"
CARD = "README.md"


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export."""

    folder: Path
    version: int
    size_bytes: int


def export(run: Path, version: str, folder: Path, adapter: bool = False) -> Exported:
    """Writes `folder`, which must be empty or not exist; all of it, or nothing where it raises.

    Args:
        run: the run's folder.
        version: a number, or `BEST`: that of the highest held-out accuracy.
        adapter: LoRA's adapters alone, in the format of peft, in place of the merged weights.

    Raises:
        PreconditionError: the folder is not empty; the run has nothing to export; the best version is the model that
            the run began with.
        NotFoundError: the version is not kept, or was trained without LoRA where adapters are asked for.
        InvalidInputError: `version` is no number, or `folder` no place for a folder.
        CorruptDataError: the published files are not what their manifest says.
    """
    _require_empty(folder)
    folder = folder.resolve()
    number = _number(run, version)
    source = _source(run, number, adapter)
    manifest = published.read_manifest(source)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside its place, so that the rename is one on the same disk.
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        made = Path(temporary) / manifest.folder
        made.mkdir()
        for file in manifest.files:
            _copy(source / file.name, made)
        published.verify(Path(temporary), manifest)  # the copy: what was read is then known to be whole too
        _describe(source, made)
        settings = recorded.read(run)
        _add_chat_template(settings, made)
        evaluations = records.read(run / records.EVALUATIONS)
        card = Card(run.name, number, settings, records.steps(run / records.LEARNER), evaluations, manifest)
        (made / CARD).write_text(card.text(folder.name), encoding="utf-8")
        for path in (*made.iterdir(), made):
            sync(path)
        size = sum(path.stat().st_size for path in made.iterdir())
        if folder.is_dir():
            folder.rmdir()
        made.rename(folder)
    sync(folder.parent)
    return Exported(folder, number, size)


def _require_empty(folder: Path) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InvalidInputError(f"FOLDER is {folder}, which is no folder; name one that does not exist yet")
    if folder.is_dir() and any(folder.iterdir()):
        raise PreconditionError(f"FOLDER is {folder}, which is not empty; name one that is, or does not exist yet")
    for parent in folder.absolute().parents:
        if parent.exists():
            if not parent.is_dir():
                raise InvalidInputError(f"FOLDER is {folder}, and {parent} is a file; name a place inside a folder")
            return


def _number(run: Path, version: str) -> int:
    """The version that is meant. Whether it is kept is another question."""
    if version != BEST:
        if version.isascii() and version.isdecimal():
            return int(version)
        raise InvalidInputError(f"--version is {version!r}; expected {BEST!r} or a number, {_kept_in_words(run)}")
    evaluations = records.read(run / records.EVALUATIONS)
    if not evaluations:
        raise PreconditionError(
            f"run {run.name} has no evaluation yet, so that none of its versions is the best; "
            f"give --version, {_kept_in_words(run)}"
        )
    return int(best_of(run, evaluations)["version"])


def _source(run: Path, version: int, adapter: bool) -> Path:
    """The published folder of a version, or of its adapters."""
    source = run / records.WEIGHTS / published.folder_name(version)
    if not published.has_files(source):
        if version == 0:
            model = recorded.read(run).get("run", {}).get("model")
            raise PreconditionError(
                f"version 0 is the model that run {run.name} began with{f', {model}' if model else ''}: "
                f"there is nothing to export; give --version, {_kept_in_words(run)}"
            )
        raise NotFoundError(
            f"version {version} of run {run.name} is not kept; give --version, {_kept_in_words(run)} "
            "(learner.checkpoints.keep_weights says how many of the newest are)"
        )
    if adapter and not (source / published.ADAPTER).is_dir():
        raise NotFoundError(
            f"version {version} of run {run.name} has no adapters: it was trained with learner.lora.rank 0; "
            "leave --adapter out"
        )
    return source / published.ADAPTER if adapter else source


def _kept_in_words(run: Path) -> str:
    weights = run / records.WEIGHTS
    kept = [each for each in published.versions(weights) if published.has_files(weights / published.folder_name(each))]
    if not kept:
        raise PreconditionError(f"run {run.name} has published no weights; there is nothing to export")
    return f"kept: {', '.join(map(str, kept))}"


def _describe(source: Path, made: Path) -> None:
    """Adds what stands beside the weights: config, tokenizer, chat template, generation config."""
    weights = source.parent if source.name == published.ADAPTER else source
    skipped = {published.MANIFEST, *(path.name for path in weights.glob("*.safetensors"))}
    if weights != source:
        config = read_json(source / "adapter_config.json")
        config["base_model_name_or_path"] = without_place(config.get("base_model_name_or_path"))
        (made / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        skipped |= {"config.json", "generation_config.json", "model.safetensors.index.json"}  # of the merged model
    for path in sorted(weights.iterdir()):
        if path.is_file() and path.name not in skipped:
            _copy(path, made)
    if weights == source:
        weight_files(made)
        _add_generation_config(made)


def _add_chat_template(settings: Mapping[str, Mapping[str, Any]], made: Path) -> None:
    """The template that the run's prompts were rendered with, where its data name a file in place of the model's own.

    Sources with different templates leave the model's own: no one of them is the model's.
    """
    sources = (settings.get("data") or {}).get("train") or ()
    templates = {source.get("chat_template", True) for source in sources}
    if len(templates) == 1 and isinstance(template := templates.pop(), str):
        try:
            shutil.copyfile(template, made / "chat_template.jinja")
        except OSError as error:
            raise NotFoundError(
                f"the run's data were rendered with the chat template {template}, which cannot be read now "
                f"({error.strerror}); bring it back"
            ) from None


def _add_generation_config(made: Path) -> None:
    """What ends a response, where the model folder of the run left that to its config."""
    file = made / "generation_config.json"
    if file.exists():
        return
    config = read_json(made / "config.json")
    part = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    found = {name: part.get(name, config.get(name)) for name in names}
    known = {name: value for name, value in found.items() if value is not None}
    file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")


def _copy(path: Path, to: Path) -> None:
    try:
        shutil.copyfile(path, to / path.name)
    except FileNotFoundError:
        raise NotFoundError(f"{path} is missing; the run may have removed this version just now") from None
