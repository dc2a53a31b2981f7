"""What a model folder in the layout of Hugging Face must hold, found out without loading it.

Each check names the file that is wrong. Needs neither torch nor transformers.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared.errors import CorruptDataError, NotFoundError, PreconditionError
from shared.files import sync

INDEX = "model.safetensors.index.json"
# Beside tokenizer.json, what a tokenizer is read from, in the layouts of past and present.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
# All that is read of a model beside its weights.
DESCRIPTIONS = ("config.json", "generation_config.json", *TOKENIZER_FILES)
_LFS = b"version https://git-lfs.github.com/spec/"


def check_folder(model: Path) -> None:
    """Whether a model folder can be loaded, as far as its descriptions and the headers of its weights tell.

    Raises:
        NotFoundError: config.json, the weights, or a file that the index names is missing.
        CorruptDataError: a file is cut off, a Git LFS pointer, not JSON, or does not say what it must.
    """
    files = weight_files(model)
    for name in ("config.json", "generation_config.json"):
        if (path := model / name).is_file():
            _eos(path, read_json(path))
    tensor_shapes(files)
    check_tokenizer_files(model)


def check_tokenizer_files(model: Path) -> None:
    """Raises CorruptDataError for a JSON file of the tokenizer that is broken, or a tokenizer.json without a model."""
    for name in TOKENIZER_FILES:
        if name.endswith(".json") and (path := model / name).is_file():
            read = read_json(path)
            if name == "tokenizer.json" and not isinstance(read.get("model"), dict):
                raise CorruptDataError(f"{path} has no object 'model'; expected a tokenizer of the library tokenizers")
    for name in ("merges.txt", "tokenizer.model", "chat_template.jinja"):
        if (path := model / name).is_file():
            _refuse_pointer(path)


def copy_descriptions(model: Path, to: Path) -> None:
    """Copies what a model folder holds beside weights: config, generation config, tokenizer and chat template."""
    for name in DESCRIPTIONS:
        if (model / name).is_file():
            shutil.copyfile(model / name, to / name)
            sync(to / name)


def weight_files(model: Path) -> list[Path]:
    """The safetensors files of a model folder, sorted by name.

    Raises:
        NotFoundError: config.json, the weights, or a file that the index names is missing.
        CorruptDataError: config.json or the index is broken.
    """
    if not (model / "config.json").is_file():
        raise NotFoundError(f"model folder {model} has no config.json; expected a folder in Hugging Face layout")
    read_json(model / "config.json")
    names = weight_names(model)
    if missing := [name for name in names if not (model / name).is_file()]:
        raise NotFoundError(f"model folder {model} has no {', '.join(missing)}; copy the whole folder")
    return [model / name for name in names]


def weight_names(model: Path) -> list[str]:
    """The names of the safetensors files that a model folder must have, sorted: those of its index, or else one.

    Raises:
        CorruptDataError: the index is broken.
    """
    index = model / INDEX
    if not index.is_file():
        return ["model.safetensors"]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptDataError(f"{index} has no object 'weight_map' that names the file of each tensor")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise CorruptDataError(f"{index}: weight_map[{tensor!r}] is {name!r}; expected a file name")
    return sorted(set(weight_map.values()))


def tensor_shapes(files: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor by name, from the headers alone.

    Raises:
        CorruptDataError: a file is cut off, is a Git LFS pointer, or is not safetensors.
    """
    from safetensors import SafetensorError, safe_open  # here: images without torch read settings too

    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        _refuse_pointer(file)
        try:
            with safe_open(file, framework="np") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CorruptDataError(f"{file} is not a whole safetensors file: {error}") from error
        except OSError as error:
            raise NotFoundError(f"{file} cannot be read: {error.strerror or error}") from error
    return shapes


def end_ids(model: Path) -> tuple[int, ...]:
    """The token ids that end a response: those of config.json, then those that generation_config.json adds.

    Raises:
        PreconditionError: neither file has one.
        CorruptDataError: a file is broken, or an id of it is not one.
    """
    ids: dict[int, None] = {}
    for name in ("config.json", "generation_config.json"):
        if (path := model / name).is_file():
            ids |= dict.fromkeys(_eos(path, read_json(path)))
    if not ids:
        raise PreconditionError(
            f"{model}/config.json has no eos_token_id, and neither has generation_config.json; add the id that ends a "
            "response"
        )
    return tuple(ids)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CorruptDataError that names the file where there is none."""
    _refuse_pointer(path)
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptDataError(f"{path} is not JSON: {error}; copy it again from where the model came from") from None
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror or error}") from None
    if not isinstance(read, dict):
        raise CorruptDataError(f"{path} holds {type(read).__name__}; expected a JSON object")
    return read


def _refuse_pointer(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS))
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror or error}") from None
    if start == _LFS:
        raise CorruptDataError(f"{path} is a Git LFS pointer, not the file itself; run `git lfs pull` in its folder")


def _eos(path: Path, config: dict[str, Any]) -> list[int]:
    eos = config.get("eos_token_id")
    ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
    if eos == [] or not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise CorruptDataError(
            f"{path}: eos_token_id is {eos!r}; expected the id that ends a response, or a list of such ids"
        )
    return ids
