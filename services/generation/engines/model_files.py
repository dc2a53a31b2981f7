"""What a model folder and published weights hold, from the safetensors headers alone."""

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open

from shared.errors import CorruptDataError, InvalidInputError, NotFoundError

_INDEX = "model.safetensors.index.json"


def weight_files(model: Path) -> list[Path]:
    """The safetensors files of a model folder in the layout of Hugging Face.

    Raises:
        NotFoundError: config.json, the weights, or a file that the index names is missing.
    """
    if not (model / "config.json").is_file():
        raise NotFoundError(f"model folder {model} has no config.json; expected a folder in Hugging Face layout")
    names = {"model.safetensors"}
    if (model / _INDEX).is_file():
        names = set(json.loads((model / _INDEX).read_text())["weight_map"].values())
    if missing := sorted(name for name in names if not (model / name).is_file()):
        raise NotFoundError(f"model folder {model} has no {', '.join(missing)}; copy the whole folder")
    return [model / name for name in sorted(names)]


def tensor_shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor by name.

    Raises:
        CorruptDataError: a file is cut off, or is not safetensors.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, framework="np") as tensors:
                shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise CorruptDataError(f"{file} is not a whole safetensors file: {error}") from error
    return shapes


def check_shapes(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]]) -> None:
    """Raises InvalidInputError that lists the first tensors that differ."""
    wrong = [name for name in sorted(expected.keys() | found.keys()) if expected.get(name) != found.get(name)]
    if wrong:
        listed = "; ".join(f"{name}: {found.get(name)}, expected {expected.get(name)}" for name in wrong[:3])
        raise InvalidInputError(
            f"{len(wrong)} tensors differ from the model's in name or shape, first {listed}; "
            "publish weights of the architecture that is served"
        )
