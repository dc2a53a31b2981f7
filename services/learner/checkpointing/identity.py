"""What a run must have in common with the checkpoint that it goes on from.

Every command of a run asks for it, so nothing here imports torch.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from services.learner.settings import LearnerSettings
from shared.errors import InvalidInputError
from shared.resuming import settings_of
from shared.settings import RolloutSettings, RunSettings

MODEL = "run.model"

# What says where a folder came from, and nothing of the model.
_IRRELEVANT = ("_name_or_path", "transformers_version")
# By the names of settings that checkpoints of earlier versions lack: what these did.
_NEWER = {"learner.freeze_router": False}
_BLOCKS, _BLOCK_BYTES = 64, 1 << 16  # of a weights file; a smaller one is read whole


def identity(settings: LearnerSettings, run: RunSettings, rollout: RolloutSettings) -> dict[str, Any]:
    """By the names of the settings, as JSON; all others may change where a run goes on.

    The model is known by `fingerprint`, so that its folder may move.
    """
    folder = run.require_model()
    tables = {"run": run, "rollout": rollout, "learner": settings}
    found: dict[str, Any] = {MODEL: {"folder": str(folder), "fingerprint": fingerprint(folder)}}
    for name in settings_of(*tables):
        if name != MODEL:
            table, _, key = name.partition(".")
            value = getattr(tables[table], key)
            found[name] = value.model_dump(mode="json") if isinstance(value, BaseModel) else value
    return found


def check_identity(own: Mapping[str, Any], saved: Mapping[str, Any], checkpoint: Path) -> None:
    """Raises InvalidInputError, naming the setting and both values, where a checkpoint is of something else.

    A setting that is newer than the checkpoint counts as one of its default.
    """
    for name, value in own.items():
        made_with = saved.get(name, _NEWER.get(name))
        if name == MODEL:
            if made_with is not None and made_with["fingerprint"] == value["fingerprint"]:
                continue
            value, made_with = _model(value), made_with and _model(made_with)
        if value != made_with:
            kind = "model" if name == MODEL else "run"
            raise InvalidInputError(
                f"{name} is {value}; checkpoint {checkpoint} is of another {kind}: {made_with}. "
                "Use that, or another run.id"
            )


def fingerprint(folder: Path) -> str:
    """A SHA-256 of a model folder: of its config and of its weights.

    Of a large file it reads 64 blocks of 64 KiB, evenly spaced, and its size: training moves every tensor, and reading
    hundreds of gigabytes at each start would take minutes.
    """
    digest = hashlib.sha256(json.dumps(_config(folder), sort_keys=True).encode())
    for path in sorted((*folder.glob("*.safetensors"), *folder.glob("*.bin"))):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            if size <= _BLOCKS * _BLOCK_BYTES:
                digest.update(file.read())
                continue
            for block in range(_BLOCKS):
                file.seek(block * (size - _BLOCK_BYTES) // (_BLOCKS - 1))
                digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()


def same_shape(folder: Path, other: Path) -> bool:
    """Whether two model folders have the same config, so that the tensors of one fit into the other."""
    try:
        return _config(folder) == _config(other)
    except (OSError, ValueError):  # one is not there any more
        return False


def _config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return {key: value for key, value in config.items() if key not in _IRRELEVANT}


def _model(known: Mapping[str, str]) -> str:
    return f"{known['folder']} (fingerprint {known['fingerprint'][:12]})"
